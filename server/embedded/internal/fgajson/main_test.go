package main

import (
	"bytes"
	"strings"
	"testing"

	fgamodels "deputy.example/deputy/fga-models"
)

// The shipped deputy.json is exactly the JSON of deputy.fga.
func TestShippedJSONIsCurrent(t *testing.T) {
	want, err := transform(fgamodels.DeputyDSL)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, fgamodels.DeputyJSON) {
		t.Fatal("fga-models/deputy.json is out of date with deputy.fga; run: go -C server/embedded run ./internal/fgajson ../../fga-models/deputy.fga")
	}
}

// Negative control: the comparison above notices a change of one relation.
func TestStaleJSONIsNoticed(t *testing.T) {
	edited := strings.Replace(fgamodels.DeputyDSL, "define approver: [user, group#member]", "define approver: [user]", 1)
	if edited == fgamodels.DeputyDSL {
		t.Fatal("the edit did not apply")
	}
	got, err := transform(edited)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, fgamodels.DeputyJSON) {
		t.Fatal("an edited model was taken for the shipped one")
	}
}
