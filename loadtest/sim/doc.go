// Package sim simulates a deployment of Deputy that is too large for a single machine: virtual
// instances, databases, Redis shards, OpenFGA replicas, agents and verifiers, each with the costs
// that were measured on one machine, event by event. The same seed gives the same bytes.
//
// Beside the simulation there is a model of a few formulas (Model), which computes the resources
// that a load needs. Each checks the other: the model has no queues, and the simulation has no
// formulas. docs/capacity.md describes what both are good for, and what they leave out.
package sim
