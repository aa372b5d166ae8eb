// Package sim simulates a deployment of Deputy that no single machine could show: virtual instances,
// databases, Redis shards, OpenFGA replicas, agents and verifiers, each with the costs that were measured on
// one machine, event by event. The same seed gives the same bytes.
//
// Beside the simulation stands a model of a few formulas (Model), which says how much of everything a load
// needs. Each checks the other: the model knows nothing of queues, and the simulation nothing of the formulas.
// docs/capacity.md says what both are good for, and what they leave out.
package sim
