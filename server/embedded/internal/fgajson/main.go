// Command fgajson rewrites a model in OpenFGA's language as the JSON of OpenFGA's API, beside it:
//
//	go run ./internal/fgajson ../../fga-models/deputy.fga    # writes ../../fga-models/deputy.json
//
// It is in the nested module because every user of Deputy would otherwise depend on the language's
// parser.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/openfga/language/pkg/go/transformer"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fgajson:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 || !strings.HasSuffix(args[0], ".fga") {
		return errors.New("usage: fgajson path/to/model.fga")
	}
	dsl, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	model, err := transform(string(dsl))
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return os.WriteFile(strings.TrimSuffix(args[0], ".fga")+".json", model, 0o644)
}

// transform returns dsl as indented JSON. The transformer's own spacing is random on purpose
// (protojson), so it is indented again: a committed file must not differ between runs.
func transform(dsl string) ([]byte, error) {
	raw, err := transformer.TransformDSLToJSON(dsl)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, []byte(raw), "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
