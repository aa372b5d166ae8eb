package main

var transportMutants []mutant
