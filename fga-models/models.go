// Package fgamodels holds the OpenFGA model that Deputy ships, in its two forms: OpenFGA's language
// (deputy.fga) and the JSON of OpenFGA's API (deputy.json, generated from it).
//
// The package only embeds files. server/internal/policy asks the model. The operator writes it to a
// store (docs/policy.md), or server/embedded does so for the embedded deployment. The model's tests
// are the *.fga.yaml files beside it, in the store-file format of OpenFGA's own command line. The
// nested module server/embedded runs them against a real server and asserts that deputy.json is
// current.
package fgamodels

import _ "embed"

// DeputyDSL is the shipped model as people read and edit it.
//
//go:embed deputy.fga
var DeputyDSL string

// DeputyJSON is the shipped model as the body of OpenFGA's WriteAuthorizationModel. It is generated
// from [DeputyDSL] by
//
//	go -C server/embedded run ./internal/fgajson ../../fga-models/deputy.fga
//
//go:embed deputy.json
var DeputyJSON []byte
