package main

var sdkMutants []mutant
