package main

import (
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"deputy.example/deputy/client/audit"
)

// logCommand groups the commands for auditors.
type logCommand struct {
	Export     exportCommand     `cmd:"" help:"Write all entries, for verification or for a SIEM."`
	Verify     verifyCommand     `cmd:"" help:"Verify the log, from an export or from the server."`
	Checkpoint checkpointCommand `cmd:"" help:"Fetch the newest checkpoint, the signed head of the log."`
	Prove      proveCommand      `cmd:"" help:"Write the proof that a grant is in the log."`
}

// keyFlag reads a verifier key of signed notes: the key itself, or a file that holds it and, each on
// a line of its own below it, former keys.
func keyFlag(value string) (key note.Verifier, former []note.Verifier, err error) {
	text := value
	if content, err := os.ReadFile(value); err == nil {
		text = strings.TrimSpace(string(content))
	} else if !strings.Contains(value, "+") {
		return nil, nil, usage("--key: %v", err)
	}
	var keys []note.Verifier
	for line := range strings.Lines(text + "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, err := note.NewVerifier(line)
		if err != nil {
			return nil, nil, usage("--key: must be a verifier key of signed notes (origin+hash+key), or a file with one on each line")
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, nil, usage("--key: the file holds no verifier key")
	}
	return keys[0], keys[1:], nil
}

// keptFlag reads files of checkpoints, each of which may hold several one after the other.
func keptFlag(files []string) ([]string, error) {
	var kept []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, usage("--kept: %v", err)
		}
		checkpoints := splitNotes(string(content))
		if len(checkpoints) == 0 {
			return nil, usage("--kept: %s holds no checkpoint", file)
		}
		kept = append(kept, checkpoints...)
	}
	return kept, nil
}

// splitNotes separates signed notes that follow each other. Each ends with its signatures, which
// are lines that begin with a dash and a space.
func splitNotes(text string) []string {
	var (
		notes  []string
		b      strings.Builder
		signed bool
	)
	for line := range strings.Lines(text) {
		signature := strings.HasPrefix(line, "— ")
		if signed && !signature {
			notes = append(notes, b.String())
			b.Reset()
			signed = false
		}
		if b.Len() == 0 && strings.TrimSpace(line) == "" {
			continue // between two notes
		}
		b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		signed = signed || signature
	}
	if strings.TrimSpace(b.String()) != "" {
		notes = append(notes, b.String()) // also without a signature: it must be refused, not ignored
	}
	return notes
}

// signedCheckpoint reads a checkpoint that must be signed with one of the keys.
func signedCheckpoint(text string, keys ...note.Verifier) (audit.Checkpoint, error) {
	c, err := audit.ParseCheckpoint(text, keys...)
	if err != nil {
		return c, notProven("%v", err)
	}
	return c, nil
}
