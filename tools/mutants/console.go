package main

var consoleMutants []mutant
