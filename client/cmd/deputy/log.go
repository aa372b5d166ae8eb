package main

import (
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"deputy.example/deputy/client/audit"
)

// logCommand is what auditors do with the whole log.
type logCommand struct {
	Export     exportCommand     `cmd:"" help:"Write all entries, for verifying elsewhere or for a SIEM."`
	Verify     verifyCommand     `cmd:"" help:"Recompute the log from an export or from the server."`
	Checkpoint checkpointCommand `cmd:"" help:"Fetch the newest signed head of the log, to keep it."`
	Prove      proveCommand      `cmd:"" help:"Write the proof that one grant is in the log."`
}

// keyFlag reads a verifier key of signed notes: the key itself, or a file that holds it and, each on a line
// of its own below it, keys that it followed on.
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
			return nil, nil, usage("--key: want a verifier key of signed notes (origin+hash+key), or a file that holds one on each line")
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

// splitNotes takes signed notes apart that stand one after the other: each ends with its signatures,
// which are lines that begin with a dash and a space.
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
		notes = append(notes, b.String()) // also where its signature is missing: to be refused, not passed over
	}
	return notes
}

// believe reads a checkpoint that has to be signed with one of the keys.
func believe(text string, keys ...note.Verifier) (audit.Checkpoint, error) {
	c, err := audit.ParseCheckpoint(text, keys...)
	if err != nil {
		return c, notProven("%v", err)
	}
	return c, nil
}
