package main

var houseMutants []mutant
