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

// keyFlag reads a verifier key of signed notes: the key itself, or a file that holds it.
func keyFlag(value string) (note.Verifier, error) {
	text := value
	if content, err := os.ReadFile(value); err == nil {
		text = strings.TrimSpace(string(content))
	} else if !strings.Contains(value, "+") {
		return nil, usage("--key: %v", err)
	}
	key, err := note.NewVerifier(text)
	if err != nil {
		return nil, usage("--key: want a verifier key of signed notes (origin+hash+key), or a file that holds one")
	}
	return key, nil
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

// believe reads a checkpoint that has to be signed with the key.
func believe(text string, key note.Verifier) (audit.Checkpoint, error) {
	c, err := audit.ParseCheckpoint(text, key)
	if err != nil {
		return c, notProven("%v", err)
	}
	return c, nil
}
