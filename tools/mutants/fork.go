package main

var forkMutants []mutant
