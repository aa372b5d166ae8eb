// Package client is the Go SDK of Deputy.
//
// An orchestrator that hands work to a sub-agent makes a [Client] and calls [Client.Exchange]: it
// trades the token it holds for a narrower one that names the sub-agent. A sub-agent that calls a
// tool many times keeps a [TokenSource]. The tool, a resource server, makes a [Verifier] and puts
// [Verifier.Handler] or the gRPC interceptors in front of what it serves.
//
// An auditor or a responder asks the ledger: [Client.Search], [Client.Reach], [Client.Chain],
// [Client.Descendants], and [Client.Entries] for all of it.
//
// Credentials come from [NewAssertion] or [WorkloadFile] and are asked for anew on every attempt of
// every call. They are never sent without TLS, except to this machine or where [Config] says that
// the network itself is trusted.
//
// Tokens can be bound to a key or a certificate (RFC 9449, RFC 8705): [Config].ProofKey proves the key to
// Deputy with every call, a [Presenter] sends a token with its proof to a tool, and a Verifier accepts a bound
// token from nobody who does not prove it. docs/dpop.md says what goes over the wire.
//
// No rule depends on the machine's wall clock alone. A Verifier forgets revocations by the ledger's time
// on the feed, and measures ages with the monotonic clock too. [Status] shows the offset between the two
// clocks, and warns where it exceeds ten seconds. docs/revocation.md says what a wrong clock does.
//
// What Deputy refuses comes back as *[delegation.Error]; what a Verifier refuses as *[AccessError].
// Tokens travel in a [Secret], which prints as "[redacted]" whatever it is printed with.
//
// The package owns transport, retries, credentials, offline verification and the feed of revocations.
// It must not know how the server decides, and it takes its vocabulary from package delegation.
package client
