package main

var smallMutants []mutant
