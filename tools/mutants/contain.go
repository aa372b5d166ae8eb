package main

var containMutants []mutant
