package main

import "slices"

var exchangeMutants = slices.Concat(engineMutants, endpointMutants, feedMutants)

// engineMutants are the protections of the engine: who authenticates, what may be derived, and what is the answer of each call.
var engineMutants = []mutant{
	{
		name: "exchange-caller-of-no-route", file: "server/internal/exchange/steps.go",
		old: "	if err != nil {\n		return err\n	}\n	if slices.ContainsFunc(w.parent.actors,",
		new: "	if err != nil {\n		next = actor{principal: w.caller.Principal}\n	}\n	if slices.ContainsFunc(w.parent.actors,",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/caller_rules",
	},
	{
		name: "exchange-actor-audience-authenticates", file: "server/internal/exchange/steps.go",
		old: "	if !named.Authenticates {\n",
		new: "	if !named.Authenticates && named.Principal == \"\" {\n",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/an_actor-audience_token_authenticates_nobody",
	},
	{
		name: "exchange-caller-token-of-another", file: "server/internal/exchange/steps.go",
		old: "	case named.principal != w.caller.Principal:",
		new: "	case named.principal == \"\":",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/a_caller-audience_token_is_its_caller's_alone",
	},
	{
		name: "exchange-certificate-beside-another-actor-token", file: "server/internal/exchange/steps.go",
		old: "	case named.principal != w.caller.Principal:",
		new: "	case named.principal == \"\":",
		pkg: "server/internal/exchange", test: "TestCertificatesThatAuthenticateNobody/beside_an_actor_token_that_authenticates_another",
	},
	{
		name: "exchange-bound-token-without-its-proof", file: "server/internal/exchange/possession.go",
		old: "	if h.shows(c) {\n",
		new: "	if h.shows(c) || c.Key() != \"\" {\n",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/a_bound_token_needs_its_proof",
	},
	{
		name: "exchange-bound-credential-as-bearer", file: "server/internal/exchange/possession.go",
		old: "	case c.Bearer != \"\" && byKey:\n",
		new: "	case c.Bearer != \"\" && byKey && c.DPoP != \"\":\n",
		pkg: "server/internal/exchange", test: "TestBoundCredentials",
	},
	{
		name: "exchange-policy-is-not-heard", file: "server/internal/exchange/steps.go",
		old: "		case !answer.Decision.Allowed:\n",
		new: "		case !answer.Decision.Allowed && answer.Decision.Missing == nil:\n",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/policy",
	},
	{
		name: "exchange-assertion-is-not-spent", file: "server/internal/exchange/record.go",
		old: "w.tenant.Name, drafts, w.uses())",
		new: "w.tenant.Name, drafts, nil)",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/an_assertion_serves_once,_also_after_Redis_forgot_it",
	},
	{
		name: "exchange-proof-is-not-spent", file: "server/internal/exchange/record.go",
		old: "w.tenant.Name, drafts, w.uses())",
		new: "w.tenant.Name, drafts, nil)",
		pkg: "server/internal/exchange", test: "TestProofReplay",
	},
	{
		name: "exchange-uses-are-not-counted", file: "server/internal/exchange/record.go",
		old: "	if w.parent.uses > 0 {\n",
		new: "	if w.parent.uses > 1 {\n",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/uses",
	},
	{
		name: "exchange-idempotency-key-is-not-recorded", file: "server/internal/exchange/record.go",
		old: "	if w.call.IdempotencyKey != \"\" {\n		d.Idem",
		new: "	if w.call.IdempotencyKey == \"-\" {\n		d.Idem",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/an_idempotency_key_has_one_grant",
	},
	{
		name: "exchange-check-without-revocations", file: "server/internal/exchange/steps.go",
		old: "	if _, hit := revoked.Hit(w.parent.lineage(w.arrival)); hit {\n",
		new: "	if w.call.ValidateOnly {\n		revoked = delegation.NewRevocationSet(0)\n	}\n	if _, hit := revoked.Hit(w.parent.lineage(w.arrival)); hit {\n",
		pkg: "server/internal/exchange", test: "TestEachProtectionBearsWeight/a_check_sees_revocations",
	},
	{
		name: "exchange-check-of-a-banned-signer", file: "server/internal/exchange/steps.go",
		old: "revoked.Hit(w.lineage(c)); hit {",
		new: "revoked.Hit(w.parent.lineage(w.arrival)); hit {",
		pkg: "server/internal/exchange", test: "TestCheckOfABannedSigner",
	},
	{
		name: "exchange-check-by-a-set-that-forgot", file: "server/internal/exchange/steps.go",
		old: "	if revoked.Forgotten(w.parent.expiresAt) {\n",
		new: "	if revoked.Forgotten(w.parent.expiresAt) && !w.call.ValidateOnly {\n",
		pkg: "server/internal/exchange", test: "TestCheckOfAForgottenParent",
	},
	{
		name: "exchange-horizon-before-the-actors", file: "server/internal/exchange/steps.go",
		old: checkActors + checkHorizon,
		new: checkHorizon + checkActors,
		pkg: "server/internal/exchange", test: "TestCheckOfAForgottenParent",
	},
	{
		name: "exchange-undecided-check-spends-nothing", file: "server/internal/exchange/steps.go",
		old: "		return w.spendUndecided(ctx, w.arrival, err)\n",
		new: "		return err\n",
		pkg: "server/internal/exchange", test: "TestCallOfACallerThatHangsUpSpendsItsAssertion/before_the_revocations_are_read",
	},
	{
		name: "exchange-hung-up-revocation-spends-nothing", file: "server/internal/exchange/steps.go",
		old: "CallerRate, a.noted()...)\n	return e.asUnknown(ctx, a, e.notAdmitted(ctx, a, err))\n}\n\n// notAdmitted",
		new: "CallerRate, a.noted()...)\n	return e.asUnknown(ctx, a, err)\n}\n\n// notAdmitted",
		pkg: "server/internal/exchange", test: "TestCallOfACallerThatHangsUpSpendsItsAssertion/before_it_is_admitted_to_revoke",
	},
	{
		name: "exchange-hung-up-call-spends-nothing", file: "server/internal/exchange/record.go",
		old: "w.spendUndecided(ctx, w.arrival, nil); err",
		new: "w.config.Ledger.Spend(ctx, w.tenant.Name, w.uses()); err",
		pkg: "server/internal/exchange", test: "TestCallOfACallerThatHangsUpSpendsItsAssertion/while_OpenFGA_is_asked",
	},
	{
		name: "exchange-own-spending-is-a-replay", file: "server/internal/exchange/inquire.go",
		old: "		if spend != nil { // again it would count as a replay\n			return by, err\n		}\n",
		new: "",
		pkg: "server/internal/exchange", test: "TestCallOfACallerThatHangsUpSpendsItsAssertion/once_its_assertion_is_spent",
	},
	{
		name: "exchange-wrong-clock-introspects", file: "server/internal/exchange/inquire.go",
		old: "		err = e.serving(ctx, by.tenant.Name)\n",
		new: "		err = e.revoking(ctx, by.tenant.Name)\n",
		pkg: "server/internal/exchange", test: "TestWhoKnowsBetterDoesNotServe/a_clock_that_is_wrong",
	},
	{
		name: "exchange-last-misplaced-token-is-named", file: "server/internal/exchange/plan.go",
		old: "	for _, f := range fields {\n",
		new: "	for _, f := range slices.Backward(fields) {\n",
		pkg: "server/internal/exchange", test: "TestFirstMisplacedTokenIsNamed",
	},
	{
		name: "panic-without-stack", file: "server/internal/panics/panics.go",
		old: "string(debug.Stack()))",
		new: "string(debug.Stack()[:0]))",
		pkg: "server/internal/exchange", test: "TestPanicIsLoggedWithoutItsValue",
	},
	{
		name: "panic-with-its-value", file: "server/internal/panics/panics.go",
		old: "fmt.Sprintf(\"%T\", value)",
		new: "fmt.Sprintf(\"%T %v\", value, value)",
		pkg: "server/internal/panics", test: "TestCaughtHoldsNoValue",
	},
	{
		name: "exchange-lineage-is-kept-from-the-ledger", file: "server/internal/exchange/record.go",
		old: "	d.Lineage = w.lineage(c)\n",
		new: "",
		pkg: "server/internal/exchange", test: "TestRevocationDuringPolicyNeverYieldsAGrant",
	},
	{
		name: "exchange-suspended-caller-is-told", file: "server/internal/exchange/inquire.go",
		old: "; err.Temporary() {\n		return err\n	}\n	return unauthenticated(kept)",
		new: "; err.Temporary() {\n		return err\n	}\n	return kept",
		pkg: "server/internal/exchange", test: "TestEqualAnswers",
	},
	{
		name: "exchange-suspended-caller-exchanges", file: "server/internal/exchange/steps.go",
		old: "	return w.standing(ctx, inquirer{w.arrival, revoked}, w.call.Peer, w.uses()...)",
		new: "	_ = revoked\n	return nil",
		pkg: "server/internal/exchange", test: "TestEqualAnswers",
	},
	{
		name: "exchange-refusal-tells-that-a-caller-exists", file: "server/internal/exchange/inquire.go",
		old: "		return unauthenticated(refusal)\n",
		new: "		return refusal\n",
		pkg: "server/internal/exchange", test: "TestEqualAnswers",
	},
	{
		name: "exchange-suspended-actor-is-told", file: "server/internal/exchange/steps.go",
		old: "	if c.named != nil {\n		return token.NamesNobody()\n	}\n	return errNotRegistered",
		new: "	return c.kept",
		pkg: "server/internal/exchange", test: "TestEqualAnswers",
	},
	{
		name: "exchange-suspended-actor-is-named", file: "server/internal/exchange/steps.go",
		old: "named.hit(revoked) {\n			return w.asIfUnknown(c)",
		new: "named.hit(revoked) && c.kept != nil {\n			return w.asIfUnknown(c)",
		pkg: "server/internal/exchange", test: "TestEqualAnswers",
	},
	{
		name: "exchange-target-of-another-is-told", file: "server/internal/exchange/revoke.go",
		old: "	case !may:\n		return delegation.Target{}, nothingToRevoke(call)",
		new: "	case !may:\n		return delegation.Target{}, delegation.Refuse(delegation.NotFound, \"target\", \"nothing that you may revoke\")",
		pkg: "server/internal/exchange", test: "TestNothingToRevokeIsOneAnswer",
	},
	{
		name: "exchange-any-caller-reads", file: "server/internal/exchange/audit.go",
		old: "whole: has[0], as:",
		new: "whole: true, as:",
		pkg: "server/internal/exchange", test: "TestWhoMayAsk",
	},
	{
		name: "exchange-nothing-is-withheld", file: "server/internal/exchange/audit.go",
		old: "withhold: !has[0]}",
		new: "withhold: false}",
		pkg: "server/internal/exchange", test: "TestWhatIsWithheld",
	},
	{
		name: "exchange-certificate-without-client-id", file: "server/internal/exchange/certificate.go",
		old: "	if err == nil && addressed != \"\" && c.ClientID == \"\" {\n",
		new: "	if err == nil && addressed == \"-\" && c.ClientID == \"\" {\n",
		pkg: "server/internal/exchange", test: "TestCertificatesThatAuthenticateNobody/over_HTTP_without_client_id",
	},
	{
		name: "exchange-certificate-of-two-tenants", file: "server/internal/exchange/certificate.go",
		old: "		if found != nil {\n",
		new: "		if found == t {\n",
		pkg: "server/internal/exchange", test: "TestCertificatesThatAuthenticateNobody/known_to_two_tenants",
	},
	{
		name: "exchange-checkpoint-of-another-log", file: "server/internal/exchange/checkpoints.go",
		old: "	case before.Size == 0:\n",
		new: "	case before.Size <= size:\n",
		pkg: "server/internal/exchange", test: "TestNoCheckpointOfAnotherLog",
	},
	{
		name: "exchange-checkpoint-of-a-shorter-log", file: "server/internal/exchange/checkpoints.go",
		old: "	case before.Size > size:\n",
		new: "	case before.Size > size && size > 0:\n		return nil\n	case before.Size > size:\n",
		pkg: "server/internal/exchange", test: "TestNoCheckpointOfAnotherLog",
	},
	{
		name: "exchange-session-outlives-its-revocation", file: "server/internal/exchange/inquire.go",
		old: "	if p == nil {\n		return nil\n	}\n",
		new: "	if p == nil || len(unspent) == 0 {\n		return nil\n	}\n",
		pkg: "server/internal/exchange", test: "TestSessionsEndByRevocation",
	},
	{
		name: "exchange-suspended-verifier-watches", file: "server/internal/exchange/watch.go",
		old: "w.by.keys()...); hit {\n",
		new: "w.by.keys()...); hit && w.until.IsZero() {\n",
		pkg: "server/internal/exchange", test: "TestWatchOfTheTakenBack",
	},
}

// checkActors and checkHorizon are the two halves of a check's last look at the revocations, in their order.
const (
	checkActors = "	for _, c := range w.children {\n" +
		"		if err := w.nameActor(ctx, c, revoked); err != nil {\n" +
		"			c.fail(err)\n" +
		"		} else if _, hit := revoked.Hit(w.lineage(c)); hit {\n" +
		"			c.fail(delegation.Refuse(delegation.TokenRevoked, \"actor_token\", \"the actor, or its key, was revoked\"))\n" +
		"		}\n" +
		"	}\n" +
		"	// The same set, after its last Hit: its horizon is raised before a revocation is forgotten.\n" +
		"	// Naming the actors may have taken seconds, because their issuers' keys are fetched.\n"
	checkHorizon = "	if revoked.Forgotten(w.parent.expiresAt) {\n" +
		"		return delegation.Refuse(delegation.SubjectTokenInvalid, \"subject_token\", \"the token is refused: it has expired\")\n" +
		"	}\n"
)

// endpointMutants are those of gRPC and the console.
var endpointMutants = []mutant{
	{
		name: "rpc-method-without-a-rule", file: "server/internal/rpc/methods.go",
		old: "		return delegation.Refuse(delegation.MethodNotAllowed, \"\", \"there is no such method\")\n",
		new: "		return nil\n",
		pkg: "server/internal/rpc", test: "TestMethodWithoutARule",
	},
	{
		name: "rpc-credential-that-is-ignored", file: "server/internal/rpc/methods.go",
		old: "key != \"\" {\n",
		new: "key == \"-\" {\n",
		pkg: "server/internal/rpc", test: "TestDoor",
	},
	{
		name: "rpc-verifier-without-a-credential", file: "server/internal/rpc/methods.go",
		old: "	case forVerifier:\n		if credentialIn(ctx) == \"\" && !certified(ctx) {\n",
		new: "	case forVerifier:\n		if credentialIn(ctx) == \"-\" && !certified(ctx) {\n",
		pkg: "server/internal/rpc", test: "TestDoor",
	},
	{
		name: "rpc-caller-without-a-credential", file: "server/internal/rpc/methods.go",
		old: "(r == forCaller || r == forNewActor) && credentialIn",
		new: "r == forNewActor && credentialIn",
		pkg: "server/internal/rpc", test: "TestDoor",
	},
	{
		name: "rpc-fields-without-a-bound", file: "server/internal/rpc/methods.go",
		old: "	return fits(m)\n",
		new: "	return nil\n",
		pkg: "server/internal/rpc", test: "TestEveryFieldHasABound",
	},
	{
		name: "rpc-suspended-verifier-hears-events", file: "server/internal/rpc/watch.go",
		old: "; err != nil { // asked after",
		new: "; err != nil && changed == nil { // asked after",
		pkg: "server/internal/rpc", test: "TestWatchEndsWithItsVerifier",
	},
	{
		name: "rpc-event-after-a-gap", file: "server/internal/rpc/watch.go",
		old: "		if r.Prev != w.after {\n",
		new: "		if r.Prev < w.after {\n",
		pkg: "server/internal/rpc", test: "TestGap",
	},
	{
		name: "rpc-echo-without-the-ledger", file: "server/internal/rpc/watch.go",
		old: "		w.echoes <- nil\n",
		new: "		w.echoes <- &deputyv1.WatchEcho{Nonce: mark.GetNonce()}\n",
		pkg: "server/internal/rpc", test: "TestNoEchoWithoutTheLedger",
	},
	{
		name: "console-without-headers", file: "server/internal/console/console.go",
		old: "	c.setHeaders()\n",
		new: "",
		pkg: "server/internal/console", test: "TestEveryAnswerIsShutIn",
	},
	{
		name: "console-form-without-its-token", file: "server/internal/console/console.go",
		old: "	if c.r.Method == http.MethodPost {\n",
		new: "	if c.r.Method == \"-\" {\n",
		pkg: "server/internal/console", test: "TestFormsOfOthersDoNothing",
	},
	{
		name: "console-form-of-another-origin", file: "server/internal/console/session.go",
		old: " || crossOrigin.Check(r) != nil {",
		new: " {",
		pkg: "server/internal/console", test: "TestFormsOfOthersDoNothing/cross-site",
	},
	{
		name: "console-form-without-an-origin", file: "server/internal/console/session.go",
		old: "r.Header.Get(\"Sec-Fetch-Site\") == \"\" && r.Header.Get(\"Origin\") == \"\" || ",
		new: "",
		pkg: "server/internal/console", test: "TestFormsOfOthersDoNothing/no_browser",
	},
	{
		name: "console-last-mistake-is-named", file: "server/internal/console/search.go",
		old: "{{\"subject\", &q.Subject}, {\"actor\", &q.Actor}, {\"caller\", &q.Caller}}",
		new: "{{\"subject\", &q.Subject}, {\"caller\", &q.Caller}, {\"actor\", &q.Actor}}",
		pkg: "server/internal/console", test: "TestFirstMistakeOfASearchIsNamed",
	},
	{
		name: "console-formula-in-a-cell", file: "server/internal/console/search.go",
		old: "			cells[i] = harmless(cells[i])\n",
		new: "			cells[i] += \"\"\n",
		pkg: "server/internal/console", test: "TestCSVIsInertInSpreadsheets",
	},
	{
		name: "console-answer-to-another-sign-in", file: "server/internal/console/signin.go",
		old: "	if secret == \"\" || !hmac.Equal([]byte(query.Get(\"state\")), []byte(derive(secret, \"state\"))) {\n",
		new: "	if secret == \"-\" && !hmac.Equal(nil, nil) {\n",
		pkg: "server/internal/console", test: "TestAnAnswerToAnotherSignInIsRefused",
	},
	{
		name: "console-sign-in-without-pkce", file: "server/internal/console/signin.go",
		old: ", oauth2.S256ChallengeOption(derive(secret, \"verifier\"))",
		new: "",
		pkg: "server/internal/console", test: "TestSignInLeadsToThePageThatWasWanted",
	},
	{
		name: "console-session-id-is-kept", file: "server/internal/console/signin.go",
		old: "			return err\n		}\n	}\n	session := ledger.Session{",
		new: "			return err\n		}\n		secret = old\n	}\n	session := ledger.Session{",
		pkg: "server/internal/console", test: "TestAPlantedSessionIsWorthNothing",
	},
}

// feedMutants are those of the verifier's feed.
var feedMutants = []mutant{
	{
		name: "verifier-fresh-at-arrival", file: "client/feed.go",
		old: "	m.last = e.GetLast()\n",
		new: "	m.last, m.at = e.GetLast(), w.feed.clock.now()\n",
		pkg: "client", test: "TestFeedFaults/buffering_proxy,_and_no_end_of_patience",
	},
	{
		name: "verifier-fresh-whatever-is-applied", file: "client/feed.go",
		old: "w.owed[settled].last <= applied {",
		new: "(w.owed[settled].last <= applied || applied > 0) {",
		pkg: "client", test: "TestFeedFaults/events_do_not_come",
	},
	{
		name: "verifier-event-after-a-gap", file: "client/feed.go",
		old: "	case r.Prev != applied, w.awaiting",
		new: "	case w.awaiting",
		pkg: "client", test: "TestFeedGap",
	},
}
