package main

var transportMutants = []mutant{
	{
		name: "health-watch-beyond-its-places", file: "server/internal/rpc/opening.go",
		old: "c.place == nil {\n		c.refusal = tooMany\n", new: "c.place == nil {\n		c.refusal = nil\n",
		pkg: "server/internal/rpc", test: "TestHealthWatchesAreBounded",
	},
	{
		name: "places-without-a-part-for-a-connection", file: "server/internal/peers/places.go",
		old: "if p.on[c] >= p.connection {", new: "if false {",
		pkg: "server/internal/peers", test: "TestPlacesThatLast",
	},
	{
		name: "places-without-a-part-for-an-address", file: "server/internal/peers/places.go",
		old: "case here != nil && here.Len() >= p.address:", new: "case false:",
		pkg: "server/internal/peers", test: "TestPlacesThatLast",
	},
	{
		name: "places-without-an-end", file: "server/internal/peers/places.go",
		old: "case p.taken.Len() >= p.all:", new: "case false:",
		pkg: "server/internal/peers", test: "TestPlacesThatYield",
	},
	{
		name: "oldest-call-keeps-its-place", file: "server/internal/peers/places.go",
		old: "		if p.lasting {\n			return nil, nil, true", new: "		if true {\n			return nil, nil, true",
		pkg: "server/internal/peers", test: "TestPlacesThatYield",
	},
	{
		name: "two-addresses-have-all-lasting-places", file: "server/internal/peers/places.go",
		old: "if there.Len() > most {", new: "if false {",
		pkg: "server/internal/peers", test: "TestPlacesThatLastAreShared",
	},
	{
		name: "refused-because-of-others-counts", file: "server/internal/peers/places.go",
		old: "return nil, nil, false", new: "return nil, nil, true",
		pkg: "server/internal/peers", test: "TestPlacesThatLastAreShared",
	},
	{
		name: "authenticated-caller-keeps-its-place", file: "server/internal/peers/places.go",
		old: "p, _ := ctx.Value(placeKey{}).(*Place)\n", new: "var p *Place\n_ = ctx\n",
		pkg: "server/internal/peers", test: "TestKnownGivesItsPlaceBack",
	},
	{
		name: "message-less-calls-go-on", file: "server/internal/rpc/opening.go",
		old: "cancel(errSilent)", new: "_ = cancel",
		pkg: "server/internal/rpc", test: "TestSilentCall",
	},
	{
		name: "rapid-reset-is-not-cut-grpc", file: "server/internal/rpc/opening.go",
		old: "c.client.Abandoned(c.began)", new: "_ = c.began",
		pkg: "server/internal/rpc", test: "TestRapidReset",
	},
	{
		name: "rapid-reset-is-not-cut-http", file: "server/internal/httpapi/front.go",
		old: "client.Abandoned(began)", new: "_ = began",
		pkg: "server/internal/httpapi", test: "TestRapidResetOfQuickRequests",
	},
	{
		name: "slow-requests-keep-their-places", file: "server/internal/httpapi/front.go",
		old: "current.cut()\n", new: "\n",
		pkg: "server/internal/httpapi", test: "TestRequestsMakeRoom",
	},
	{
		name: "request-on-an-unknown-connection-is-served", file: "server/internal/httpapi/front.go",
		old: "if place == nil {", new: "if false {",
		pkg: "server/internal/httpapi", test: "TestRequestsWithoutAPlace",
	},
	{
		name: "malformed-message-is-the-servers-fault", file: "server/internal/rpc/decode.go",
		old: "		in.err = delegation.Refuse(", new: "		return delegation.Refuse(",
		pkg: "server/internal/rpc", test: "TestMalformedCalls",
	},
	{
		name: "malformed-message-is-an-empty-one", file: "server/internal/rpc/decode.go",
		old: "	return in.err, nil\n", new: "	return nil, nil\n",
		pkg: "server/internal/rpc", test: "TestMalformedCalls",
	},
	{
		name: "what-does-not-unpack-is-the-servers-fault", file: "server/internal/rpc/decode.go",
		old: "encoding.RegisterCompressor(unpacker{encoding.GetCompressor(gzip.Name)})", new: "_ = unpacker{encoding.GetCompressor(gzip.Name)}",
		pkg: "server/internal/rpc", test: "TestMalformedCalls",
	},
	{
		name: "other-codecs-are-taken", file: "server/internal/rpc/opening.go",
		old: "case !speaksProto(info.Header):", new: "case false && speaksProto(info.Header):",
		pkg: "server/internal/rpc", test: "TestMalformedCalls",
	},
	{
		name: "hang-up-is-an-error", file: "server/internal/exchange/visit.go",
		old: "if fault && Left(ctx) && (refusal", new: "if false && (refusal",
		pkg: "server/internal/rpc", test: "TestClientsThatHangUp",
	},
	{
		name: "the-servers-deadline-excuses-it", file: "server/internal/exchange/visit.go",
		old: "return cause != nil && !errors.Is(cause, errOvertime)", new: "return cause != nil",
		pkg: "server/internal/exchange", test: "TestVisit",
	},
	{
		name: "unauthenticated-calls-fill-the-log", file: "server/internal/peers/sampler.go",
		old: "if s.written >= linesPerSecond {", new: "if false {",
		pkg: "server/internal/rpc", test: "TestUnauthenticatedCallsInTheLog",
	},
	{
		name: "http2-is-not-negotiated", file: "server/listen.go",
		old: `config.NextProtos = []string{"h2", "http/1.1"}`, new: "config.NextProtos = nil",
		pkg: "server", test: "TestHTTP2OfTheRealListeners",
	},
	{
		name: "weak-suites", file: "server/tls.go",
		old: "CipherSuites: authenticatedSuites,", new: "CipherSuites: nil,",
		pkg: "server", test: "TestSuitesOfTheRealListeners",
	},
	{
		name: "no-hsts", file: "server/listen.go",
		old: "httpapi.StrictTransport(s.http.Handler)", new: "s.http.Handler",
		pkg: "server", test: "TestHTTP2OfTheRealListeners",
	},
	{
		name: "hsts-over-plaintext", file: "server/internal/httpapi/front.go",
		old: "if r.TLS != nil {", new: "if true {",
		pkg: "server/internal/httpapi", test: "TestStrictTransport",
	},
	{
		name: "unreadable-requests-are-answered-as-text", file: "server/listen.go",
		old: "return httpapi.Plaintext\n", new: "return func(l net.Listener) net.Listener { return l }\n",
		pkg: "server", test: "TestUnreadableRequests",
	},
	{
		name: "unreadable-requests-over-tls-are-answered-as-text", file: "server/internal/httpapi/secured.go",
		old: `if over.ConnectionState().NegotiatedProtocol == "h2" {`, new: "if true {",
		pkg: "server", test: "TestUnreadableRequests",
	},
	{
		name: "unknown-expectation-is-answered-without-no-store", file: "server/internal/httpapi/unreadable.go",
		old: "return code, withoutBody || ", new: "_ = withoutBody\n\treturn code, ",
		pkg: "server", test: "TestUnreadableRequests",
	},
	{
		name: "unreadable-requests-are-answered-without-hsts", file: "server/internal/httpapi/secured.go",
		old: "readable: readable{Conn: over, strict: s.strict}", new: "readable: readable{Conn: over}",
		pkg: "server", test: "TestUnreadableRequests",
	},
	{
		name: "certificates-of-http1-are-lost", file: "server/internal/httpapi/unreadable.go",
		old: "return c.secured.ConnectionState() }", new: "return tls.ConnectionState{} }",
		pkg: "server", test: "TestMutualTLS",
	},
	{
		name: "handshakes-one-after-another", file: "server/internal/httpapi/secured.go",
		old: "go s.shake(conn)", new: "s.shake(conn)",
		pkg: "server/internal/httpapi", test: "TestSlowHandshakes",
	},
	{
		name: "handshakes-without-an-end", file: "server/internal/httpapi/secured.go",
		old: "context.WithTimeout(s.closing, handshakeTimeout)", new: "context.WithCancel(s.closing)",
		pkg: "server/internal/httpapi", test: "TestSlowHandshakes",
	},
	{
		name: "handshake-that-panics-ends-the-instance", file: "server/internal/httpapi/secured.go",
		old: "if p := recover(); p != nil {", new: "if p := any(nil); p != nil {",
		pkg: "server/internal/httpapi", test: "TestSecuredListener",
	},
	{
		name: "unaccepted-connection-stays-open", file: "server/internal/httpapi/secured.go",
		old: "		if !taken {\n", new: "		if false && !taken {\n",
		pkg: "server/internal/httpapi", test: "TestSecuredListener",
	},
	{
		name: "call-on-an-unknown-connection-is-served", file: "server/internal/rpc/opening.go",
		old: `c.refusal = broken("a call on an unknown connection")`, new: "c.place = new(peers.Place)",
		pkg: "server/internal/rpc", test: "TestUnboundedCallsAreRefused",
	},
	{
		name: "unread-calls-are-not-bounded", file: "server/internal/rpc/opening.go",
		old: "unread: peers.NewPlaces(4096, 2048, maxStreams)", new: "unread: peers.NewPlaces(1<<20, 1<<20, maxStreams)",
		pkg: "server/internal/rpc", test: "TestSilentCallsMakeRoom",
	},
	{
		name: "unfinished-messages-without-a-bound", file: "server/internal/peers/unfinished.go",
		old: "for u.held > u.most {", new: "for false {",
		pkg: "server/internal/peers", test: "TestUnfinished",
	},
	{
		name: "unfinished-messages-are-not-counted", file: "server/internal/rpc/opening.go",
		old: "c.unfinished.Read(c.peer.connection, n)", new: "_ = n",
		pkg: "server", test: "TestFloods",
	},
	{
		name: "whole-message-still-counts", file: "server/internal/peers/unfinished.go",
		old: "m.of.held -= until - m.from\n", new: "_ = until\n",
		pkg: "server/internal/peers", test: "TestUnfinished",
	},
	{
		name: "health-watch-stays-without-its-place", file: "server/internal/rpc/opening.go",
		old: "c.place = o.public.Enter(c.client, func() { cancel(errCrowded) })", new: "c.place = o.public.Enter(c.client, func() {})",
		pkg: "server/internal/rpc", test: "TestHealthWatchesMakeRoom",
	},
	{
		name: "authenticated-cancellation-counts-grpc", file: "server/internal/rpc/opening.go",
		old: " && !c.place.Authenticated()", new: "",
		pkg: "server/internal/rpc", test: "TestAuthenticatedCancellations",
	},
	{
		name: "authenticated-cancellation-counts-http", file: "server/internal/httpapi/front.go",
		old: " && !place.Authenticated()", new: "",
		pkg: "server/internal/httpapi", test: "TestAuthenticatedCancellations",
	},
	{
		name: "internal-error-hides-behind-a-hang-up", file: "server/internal/exchange/visit.go",
		old: "refusal.Reason == delegation.DependencyDown || ", new: "fault || ",
		pkg: "server/internal/exchange", test: "TestVisit",
	},
	{
		name: "front-answers-without-hsts", file: "server/listen.go",
		old: "	s.http.Handler = httpapi.StrictTransport(s.http.Handler)", new: "	//",
		pkg: "server", test: "TestRefusalsOfTheFrontHaveHSTS",
	},
	{
		name: "front-answers-without-nosniff", file: "server/internal/httpapi/errors.go",
		old: "header.Set(\"X-Content-Type-Options\", \"nosniff\")\n", new: "\n",
		pkg: "server/internal/httpapi", test: "TestRequestsWithoutAPlace",
	},
	{
		name: "client-of-a-proxy-closes-its-connection", file: "server/internal/rpc/opening.go",
		old: `c.client = o.clients.Of(c.connection, info.Header.Get("x-forwarded-for"))`, new: `c.client = c.connection`,
		pkg: "server/internal/rpc", test: "TestClientsOfAProxyThatReset",
	},
	{
		name: "spent-client-is-served-grpc", file: "server/internal/rpc/opening.go",
		old: `case c.client.Spent():`, new: `case false:`,
		pkg: "server/internal/rpc", test: "TestClientsOfAProxyThatReset",
	},
	{
		name: "spent-client-is-served-http", file: "server/internal/httpapi/front.go",
		old: `if known && !client.Spent() {`, new: `if known {`,
		pkg: "server/internal/httpapi", test: "TestClientsOfAProxyThatAbandon",
	},
	{
		name: "every-peer-names-its-client", file: "server/internal/peers/clients.go",
		old: `if !is || !s.isProxy(tcp.AddrPort().Addr()) {`, new: `if !is || tcp == nil {`,
		pkg: "server/internal/peers", test: "TestClientsOfProxies",
	},
	{
		name: "forged-client-is-believed", file: "server/internal/peers/clients.go",
		old: `for i := len(hops) - 1; i >= 0; i-- {`, new: `for i := range hops {`,
		pkg: "server/internal/peers", test: "TestClientsOfProxies",
	},
	{
		name: "clients-without-a-bound", file: "server/internal/peers/clients.go",
		old: `return s.others`, new: `s.others = newClient(address)`,
		pkg: "server/internal/peers", test: "TestClientsAreBounded",
	},
}
