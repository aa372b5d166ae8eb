// Package fgamodels holds the OpenFGA model that Deputy ships, in the two forms it is needed in: the language people
// write (deputy.fga) and the JSON that OpenFGA's API takes (deputy.json, generated from it).
//
// The package embeds files and knows nothing else: how the model is asked is server/internal/policy, how it is written
// to a store is the operator's doing (docs/policy.md) or, for the embedded default, server/embedded. The model's tests are
// the *.fga.yaml files beside it, in the store-file format of OpenFGA's own command line; the nested module
// server/embedded runs them against a real server and asserts that deputy.json is current.
package fgamodels

import _ "embed"

// DeputyDSL is the shipped model as people read and edit it.
//
//go:embed deputy.fga
var DeputyDSL string

// DeputyJSON is the shipped model as the body of OpenFGA's WriteAuthorizationModel. It is generated from [DeputyDSL] by
//
//	go -C server/embedded run ./internal/fgajson ../../fga-models/deputy.fga
//
//go:embed deputy.json
var DeputyJSON []byte
