package embedded

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestReadmeShowsCommandsThatWork holds the README's five minutes against the commands that the
// demo prints, every one of which is executed by TestEveryPrintedCommandWorks.
func TestReadmeShowsCommandsThatWork(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(readme), "<!-- demo -->")
	if !found {
		t.Fatal("README.md has no <!-- demo --> before what make run shows")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	config := Config{Dir: "deputy-data", CLI: "bin/deputy", GRPC: "127.0.0.1:9090", HTTP: "127.0.0.1:8080", Ops: "127.0.0.1:9091", Dev: "127.0.0.1:8081"}
	e := &Embedded{config: config, store: contentID("store", []byte(tenantName))}
	var work []string
	for _, s := range (&demo{Embedded: e}).steps() {
		work = append(work, s.command)
	}
	shown := shellCommands(section)
	if len(shown) < 4 {
		t.Errorf("README.md shows %d commands between <!-- demo --> and the next heading: show what the demo prints", len(shown))
	}
	for _, command := range shown {
		if !slices.Contains(work, command) {
			t.Errorf("README.md shows a command that the demo does not print:\n%s", command)
		}
	}
	if altered := strings.Replace(work[1], "decode", "decode --no-such-flag", 1); slices.Contains(work, shellCommands("```sh\n" + altered + "\n```\n")[0]) {
		t.Error("the control: an altered command is not noticed")
	}
}

// shellCommands reads the commands of a page's shell blocks, each with the lines that continue it.
func shellCommands(page string) []string {
	var commands []string
	inside, open := false, false
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inside, open = line == "```sh", false
		case !inside || line == "" || strings.HasPrefix(line, "#"):
		case open:
			commands[len(commands)-1] += "\n" + line
		default:
			commands = append(commands, line)
		}
		open = inside && (strings.HasSuffix(line, `\`) || strings.HasSuffix(line, "|"))
	}
	return commands
}
