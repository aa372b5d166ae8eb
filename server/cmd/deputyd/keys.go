package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"deputy.example/deputy/server"
)

type keys struct {
	Create create     `cmd:"" help:"Create a key in a new file that only its owner can read. Never replaces a file."`
	List   listKeys   `cmd:"" help:"List the managed keys and the state of each."`
	Rotate rotateKeys `cmd:"" help:"Create the next managed key. It is published now and signs after publish_ahead. The previous key verifies until its last token has expired."`
	Retire retireKeys `cmd:"" help:"Retire a managed key at once and permanently. Everything that it signed is refused, within a second by Deputy and within a minute by the SDK."`
}

type (
	create struct {
		Out        string `required:"" placeholder:"FILE" help:"The new file."`
		Algorithm  string `required:"" xor:"kind" enum:"ES256,EdDSA,RS256" help:"Create a key that signs tokens: ES256, EdDSA or RS256."`
		Checkpoint string `required:"" xor:"kind" placeholder:"ISSUER" help:"Create a key that signs checkpoints of this issuer's log, and print its verifier key, which auditors need."`
		KEK        bool   `name:"kek" required:"" xor:"kind" help:"Create a key that encrypts the managed keys (key_encryption.key_file), and print its id."`
	}
	someKeys struct {
		file
		Tenant string `placeholder:"NAME" help:"The tenant. Optional if the configuration has only one."`
		JSON   bool   `name:"json" help:"Write JSON, one line for each key."`
	}
	listKeys   struct{ someKeys }
	rotateKeys struct {
		someKeys
		Checkpoints bool `help:"Rotate the key that signs checkpoints. Both keys sign until the old one is retired."`
		Immediately bool `help:"Sign within seconds, for instance after a theft. Verifiers that have not fetched the new key yet refuse its first tokens."`
	}
	retireKeys struct {
		someKeys
		KID string `arg:"" name:"kid" help:"The key, as \"deputyd keys list\" names it."`
	}
)

// Help is the text below the flags.
func (listKeys) Help() string {
	return "Example:\n  deputyd keys list --config deputy.yaml --tenant acme"
}

// Help is the text below the flags.
func (rotateKeys) Help() string {
	return `Examples:
  deputyd keys rotate --config deputy.yaml --tenant acme
  deputyd keys rotate --config deputy.yaml --tenant acme --checkpoints

After the theft of a key, rotate, and retire the stolen key as soon as the new one signs.
  deputyd keys rotate --config deputy.yaml --tenant acme --immediately
  deputyd keys retire --config deputy.yaml --tenant acme KID`
}

// Help is the text below the flags.
func (retireKeys) Help() string {
	return `Example:
  deputyd keys retire --config deputy.yaml --tenant acme 0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I

The only key that signs cannot be retired: rotate with --immediately first. Retirement cannot be undone.
Put -- before a kid that begins with a dash.`
}

// Run creates a key.
func (c create) Run(stdout io.Writer) error {
	var say string
	var err error
	switch {
	case c.KEK:
		say, err = server.CreateKEK(c.Out)
	case c.Checkpoint != "":
		say, err = server.CreateCheckpointKey(c.Out, c.Checkpoint)
	default:
		return server.CreateKey(c.Out, c.Algorithm)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, say)
	return err
}

// Run lists.
func (c listKeys) Run(ctx context.Context, stdout io.Writer) error {
	config, err := server.Load(c.Config)
	if err != nil {
		return err
	}
	list, err := server.Keys(ctx, config, c.Tenant)
	if err != nil {
		return err
	}
	return c.print(stdout, list)
}

// Run rotates.
func (c rotateKeys) Run(ctx context.Context, stdout io.Writer) error {
	config, err := c.one()
	if err != nil {
		return err
	}
	key, err := server.RotateKey(ctx, config, c.Tenant, c.Checkpoints, c.Immediately)
	if err != nil {
		return err
	}
	return c.print(stdout, []server.Key{key})
}

// Run retires.
func (c retireKeys) Run(ctx context.Context, stdout io.Writer) error {
	config, err := c.one()
	if err != nil {
		return err
	}
	key, err := server.RetireKey(ctx, config, c.Tenant, c.KID)
	if err != nil {
		return err
	}
	return c.print(stdout, []server.Key{key})
}

// one loads the configuration and finds the tenant. It never chooses between several.
func (c *someKeys) one() (server.Config, error) {
	config, err := server.Load(c.Config)
	switch {
	case err != nil:
		return config, err
	case c.Tenant != "":
		return config, nil
	case len(config.Tenants) > 1:
		return config, errors.New("the configuration has several tenants: name one with --tenant")
	}
	c.Tenant = config.Tenants[0].Name
	return config, nil
}

func (c someKeys) print(w io.Writer, list []server.Key) error {
	if c.JSON {
		for _, key := range list {
			if err := json.NewEncoder(w).Encode(key); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TENANT\tUSE\tKID\tALGORITHM\tSTATE\tSINCE\tUNTIL\tSEALED BY")
	var verifiers string
	for _, key := range list {
		until, sealed := "-", "-"
		if key.Until != nil {
			until = key.Until.Format(time.RFC3339)
		}
		if key.SealedBy != "" {
			sealed = key.SealedBy
		}
		if key.Verifier != "" {
			verifiers += "verifier key of " + key.Tenant + " for auditors: " + key.Verifier + "\n"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			key.Tenant, key.Use, key.ID, key.Algorithm, key.State, key.Since.Format(time.RFC3339), until, sealed)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, verifiers)
	return err
}
