package main

var timeMutants []mutant
