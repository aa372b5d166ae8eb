package embedded

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"deputy.example/deputy/client/delegation"
)

// step is a command for a shell, to run after those before it.
type step struct {
	about   string // "": belongs to the previous step
	command string
	refused bool // Deputy refuses, and the command exits with code 1
	late    bool // exits with code 3 if the demo's verifier disconnected less than ten seconds ago
}

// next writes the files that the commands need and prints the commands.
func (d *demo) next(context.Context) error {
	if err := d.keep("env", d.environment()); err != nil {
		return err
	}
	d.line("")
	d.line("Deputy is serving: gRPC on %s, HTTP on %s.", d.config.GRPC, d.Issuer())
	d.line("The console: %s. Sign in as rita (who can contain an agent), audrey (who can see everything) or alice.", d.ConsoleAddress())
	d.line("What to try next, in another shell:")
	for _, s := range d.steps() {
		if s.about != "" {
			d.line("")
			d.line("  # %s", s.about)
		}
		d.line("  %s", s.command)
	}
	d.line("")
	d.line("The development issuer and OpenFGA on %s give tokens and permissions to every program on this machine.", d.devAddress())
	d.line("They are for trying Deputy out. Real identities come from an OpenID provider; deputyd contains no such issuer.")
	d.line("Data and keys stay in %s. Press Ctrl-C to stop.", d.config.Dir)
	return nil
}

// environment makes the command line act as agent:planner.
func (d *demo) environment() string {
	var b strings.Builder
	for _, v := range [][2]string{
		{"DEPUTY_ISSUER", d.Issuer()}, {"DEPUTY_ADDR", d.config.GRPC}, {"DEPUTY_PLAINTEXT", "true"},
		{"DEPUTY_CLIENT_ID", string(planner)}, {"DEPUTY_CLIENT_KEY", d.clientKeyPath(planner)},
	} {
		fmt.Fprintf(&b, "export %s=%s\n", v[0], quoted(v[1]))
	}
	return b.String()
}

func (d *demo) steps() []step {
	deputy := d.config.CLI
	file := func(name string) string { return quoted(d.path("demo", name)) }
	people, workloads := d.devAddress()+"/people/token", d.devAddress()+"/workloads/token"
	handDown := fmt.Sprintf(`curl -sf -d agent=researcher -d audience=actor %s |
    %s exchange --subject-token-file %s --actor-token-file - --scope calendar.read --audience %s`,
		workloads, deputy, file("planner.jwt"), calendarAudience)
	responder := fmt.Sprintf("DEPUTY_CLIENT_ID=%s DEPUTY_CLIENT_KEY=%s ", security, quoted(d.clientKeyPath(security)))
	relate := func(change string) string {
		return fmt.Sprintf(`curl -sf %s/openfga/stores/%s/write \
    -d '{"%s":{"tuple_keys":[{"user":"%s","relation":"delegator","object":"%s"}]}}'`,
			d.devAddress(), d.store, change, planner, researcher)
	}
	return []step{
		{about: "act as agent:planner", command: ". " + file("env")},
		{about: "verify and explain the researcher's token, and draw its chain", command: fmt.Sprintf("%s decode - < %s", deputy, file("researcher.jwt"))},
		{command: fmt.Sprintf("%s chain - < %s", deputy, file("researcher.jwt"))},
		{about: "show what was derived from the planner's token, and what the planner can do right now",
			command: fmt.Sprintf("%s tree - < %s", deputy, file("planner.jwt"))},
		{command: fmt.Sprintf("%s reach %s", deputy, planner)},
		{about: "sign alice in again, and let the planner act for her at the mail server", command: fmt.Sprintf("curl -sf -d user=alice %s > %s", people, file("alice.jwt"))},
		{command: fmt.Sprintf("%s exchange --subject-token-file %s --scope mail.read --audience %s", deputy, file("alice.jwt"), mailAudience)},
		{about: "hand the calendar to the researcher once more", command: handDown},
		{about: "withdraw the planner's consent to the researcher: the same exchange is refused; then consent again", command: relate("deletes")},
		{command: handDown, refused: true},
		{command: relate("writes")},
		{about: "revoke the researcher's token: first list the tokens that would be revoked, then revoke",
			command: fmt.Sprintf("%s revoke - --dry-run < %s", deputy, file("researcher.jwt"))},
		{command: fmt.Sprintf("%s revoke - --reason drill < %s", deputy, file("researcher.jwt"))},
		{about: "contain the researcher as a responder: all its tokens are refused and it obtains no new one; then resume it",
			command: responder + deputy + " contain " + string(researcher) + " --yes --reason drill", late: true},
		{command: responder + deputy + " resume " + string(researcher) + " --reason drill"},
		{about: "any OAuth client can exchange: RFC 8693 over HTTP, authenticated by a workload token", command: fmt.Sprintf(
			`curl -sf %s/oauth2/token -d scope=calendar.read -d audience=%s \
    -d grant_type=%s \
    -d subject_token_type=%s -d subject_token="$(cat %s)" \
    -d actor_token_type=%s -d actor_token="$(curl -sf -d agent=planner -d audience=caller %s)"`,
			d.Issuer(), calendarAudience, delegation.GrantTypeTokenExchange,
			delegation.TokenTypeAccessToken, file("alice.jwt"), delegation.TokenTypeJWT, workloads)},
		{command: fmt.Sprintf("curl -sf %s/.well-known/oauth-authorization-server", d.Issuer())},
	}
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

// quoted returns s as one word of a POSIX shell.
func quoted(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
