// Package client is the Go SDK of Deputy.
//
// An orchestrator that hands work to a sub-agent makes a [Client] and calls [Client.Exchange]: it
// exchanges its token for a narrower one that names the sub-agent. A sub-agent that calls a tool
// many times keeps a [TokenSource]. The tool, a resource server, makes a [Verifier] and puts
// [Verifier.Handler] or the gRPC interceptors in front of its handlers.
//
// An auditor or a responder queries the ledger with [Client.Search], [Client.Reach], [Client.Chain]
// and [Client.Descendants], and reads all of it with [Client.Entries].
//
// Credentials come from [NewAssertion] or [WorkloadFile] and are requested again on every attempt
// of every call. They are never sent without TLS, except to this machine or where [Config] declares
// the network itself as trusted.
//
// Tokens can be bound to a key or a certificate (RFC 9449, RFC 8705). [Config].ProofKey proves the
// key to Deputy with every call. A [Presenter] sends a token with its proof to a tool. A Verifier
// accepts a bound token only with such a proof. docs/dpop.md describes the messages.
//
// No rule depends on the machine's wall clock alone. A Verifier forgets revocations by the ledger's
// time on the feed, and measures ages with the monotonic clock too. [Status] shows the offset
// between the two clocks, and warns where it exceeds ten seconds. docs/revocation.md describes the
// effects of a wrong clock.
//
// Deputy's refusals are *[delegation.Error]. A Verifier's refusals are *[AccessError]. Tokens are
// held in a [Secret], which prints as "[redacted]" in every format.
//
// The package owns transport, retries, credentials, offline verification and the feed of
// revocations. It must not depend on how the server decides, and it uses the vocabulary of package
// delegation.
package client
