package main

import "slices"

var houseMutants = slices.Concat(policyMutants, policyMutantsInterleaved, vaultMutants, embeddedMutants, simulatorMutants, proofMutants)

// policyMutants are the protections of the policy's memory, and of what counts as an answer of OpenFGA.
var policyMutants = []mutant{
	{
		name: "policy-reading-before-use",
		file: "server/internal/policy/remember.go",
		old:  "\t\treturn noReading\n\t}\n",
		new:  "\t\treturn noReading\n\t}\n\tif m.ready {\n\t\treturn over(nil)\n\t}\n",
		pkg:  "server/internal/policy", test: "TestAnswersReflectAcknowledgedWrites",
	},
	{
		name: "policy-reading-of-its-own",
		file: "server/internal/policy/remember.go",
		old:  "\t\tm.next = nil // a question that arrives from now on waits for the next reading\n\t\tm.mu.Unlock()\n\t\tr.err = c.read(model)\n",
		new:  "\t\tm.mu.Unlock()\n\t\tr.err = c.read(model)\n\t\tm.mu.Lock()\n\t\tm.next = nil\n\t\tm.mu.Unlock()\n",
		pkg:  "server/internal/policy", test: "TestAReadingUnderWayIsTooOld",
	},
	{
		name: "policy-decision-position",
		file: "server/internal/policy/remember.go",
		old:  "\tif !m.ready || m.changed > position || m.distrust {\n",
		new:  "\tposition = m.position\n\tif !m.ready || m.changed > position || m.distrust {\n",
		pkg:  "server/internal/policy", test: "TestACheckThatIsOvertakenIsNotRemembered",
	},
	{
		name: "policy-reading-overlap",
		file: "server/internal/policy/remember.go",
		old:  "\tmoved := sent.Add(-m.overlap)\n",
		new:  "\tmoved := sent\n",
		pkg:  "server/internal/policy", test: "TestRowsThatAppearLate",
	},
	{
		name: "policy-grant-of-changed-decisions",
		file: "server/internal/policy/grants.go",
		old:  " || m.changed > g.at",
		new:  "",
		pkg:  "server/internal/policy", test: "TestRemembered",
	},
	{
		name: "policy-rows-that-are-gone",
		file: "server/internal/policy/remember.go",
		old:  "m.advance(model, fresh, first || !whole)",
		new:  "m.advance(model, fresh, first)",
		pkg:  "server/internal/policy", test: "TestRowsThatAreGone",
	},
	{
		name: "policy-contradicted-changelog",
		file: "server/internal/policy/remember.go",
		old:  "still == old && old.at >= m.forgotten[classOf(r)] {\n\t\t\tm.distrust = true",
		new:  "still == old && old.at >= m.forgotten[classOf(r)] {\n\t\t\tm.distrust = false",
		pkg:  "server/internal/policy", test: "TestTheChangelogIsCaughtLying",
	},
	{
		name: "policy-clock-of-the-changelog",
		file: "server/internal/policy/changes.go",
		old:  "\tcase at.Add(time.Second + maxSkew).Before(sent), at.Add(-maxSkew).After(received):\n",
		new:  "\tcase at.IsZero():\n",
		pkg:  "server/internal/policy", test: "TestChangelogOfAnotherTime",
	},
	{
		name: "policy-status-200",
		file: "server/internal/policy/wire.go",
		old:  "\tcase response.StatusCode != http.StatusOK:\n",
		new:  "\tcase response.StatusCode >= 600:\n",
		pkg:  "server/internal/policy", test: "TestFaultsAreUnavailable",
	},
	{
		name: "policy-no-redirects",
		file: "server/internal/policy/policy.go",
		old:  "return http.ErrUseLastResponse",
		new:  "return nil",
		pkg:  "server/internal/policy", test: "TestFaultsAreUnavailable",
	},
	{
		name: "policy-one-answer-to-each-check",
		file: "server/internal/policy/wire.go",
		old:  "\tif len(response.Result) != len(results) {\n",
		new:  "\tif len(response.Result) < len(results) {\n",
		pkg:  "server/internal/policy", test: "TestFaultsAreUnavailable",
	},
	{
		name: "policy-answer-beside-an-error",
		file: "server/internal/policy/wire.go",
		old:  "\t\tcase r.Error != nil:\n",
		new:  "\t\tcase r.Error != nil && r.Allowed == nil:\n",
		pkg:  "server/internal/policy", test: "TestFaultsAreUnavailable",
	},
	{
		name: "policy-bounded-answer",
		file: "server/internal/policy/wire.go",
		old:  "left: maxResponse}",
		new:  "left: 1 << 40}",
		pkg:  "server/internal/policy", test: "TestFaultsAreUnavailable/too_long",
	},
	{
		name: "policy-highest-consistency",
		file: "server/internal/policy/wire.go",
		old:  "openfga.CONSISTENCYPREFERENCE_HIGHER_CONSISTENCY",
		new:  "openfga.CONSISTENCYPREFERENCE_MINIMIZE_LATENCY",
		pkg:  "server/internal/policy", test: "TestConformanceOfTheFake",
	},
	{
		name: "policy-edges-without-a-gap",
		file: "server/internal/policy/question.go",
		old:  "\t\tif e.From != at {\n",
		new:  "\t\tif e.From == \"\" {\n",
		pkg:  "server/internal/policy", test: "TestRefusedBeforeAsking",
	},
	{
		name: "policy-edges-reach-the-actor",
		file: "server/internal/policy/question.go",
		old:  "\tif at != q.Actor {\n",
		new:  "\tif at == \"\" {\n",
		pkg:  "server/internal/policy", test: "TestRefusedBeforeAsking",
	},
	{
		name: "policy-field-that-is-not-checked",
		file: "server/internal/policy/question.go",
		old:  "\t\tif !rule.known[name] {\n",
		new:  "\t\tif !rule.known[name] && name == \"\" {\n",
		pkg:  "server/internal/policy", test: "TestRefusedBeforeAsking",
	},
	{
		name: "policy-detail-without-actions",
		file: "server/internal/policy/question.go",
		old:  "\tif len(actions) == 0 {\n",
		new:  "\tif len(actions) < 0 {\n",
		pkg:  "server/internal/policy", test: "TestRefusedBeforeAsking",
	},
	{
		name: "policy-both-hold",
		file: "server/internal/policy/question.go",
		old:  "\tm.User, m.Party = string(q.Subject), PartySubject\n\tx.add(m)\n",
		new:  "",
		pkg:  "server/internal/policy", test: "TestConformanceOfTheFake",
	},
	{
		name: "policy-pairs-of-scope-and-audience",
		file: "server/internal/policy/question.go",
		old:  "\t\tcase several:\n",
		new:  "\t\tcase several && mapped:\n",
		pkg:  "server/internal/policy", test: "TestConformanceOfTheFake",
	},
	{
		name: "policy-limit-of-checks",
		file: "server/internal/policy/question.go",
		old:  "\tif len(x.checks) == x.most {\n",
		new:  "\tif len(x.checks) < 0 {\n",
		pkg:  "server/internal/policy", test: "TestConformanceOfTheFake",
	},
	{
		name: "policy-condition-is-not-remembered",
		file: "server/internal/policy/influence.go",
		old:  " && !i.never[c]",
		new:  "",
		pkg:  "server/embedded", test: "TestConditionsAreNotRemembered",
	},
}

// policyMutantsInterleaved are those whose absence random interleavings show too.
var policyMutantsInterleaved = interleaved(policyMutants[:5])

func interleaved(mutants []mutant) []mutant {
	mutants = slices.Clone(mutants)
	for i := range mutants {
		mutants[i].name += "-interleaved"
		mutants[i].test = "TestFixedInterleavings"
	}
	return mutants
}

// vaultMutants are the protections of the keys that Deputy manages itself.
var vaultMutants = []mutant{
	{
		name: "vault-row-is-bound",
		file: "server/internal/vault/row.go",
		old:  "[]string{r.Tenant, string(r.Use), r.ID, r.Algorithm}",
		new:  "[]string{r.ID}",
		pkg:  "server/internal/vault", test: "TestARowOpensOnlyAsItWasSealed",
	},
	{
		name: "vault-place-is-bound",
		file: "server/internal/vault/row.go",
		old:  "[]uint64{r.Number, uint64(r.Published.UnixMicro()), uint64(r.SignsFrom.UnixMicro())}",
		new:  "[]uint64{r.Number}",
		pkg:  "server/internal/vault", test: "TestARowOpensOnlyAsItWasSealed",
	},
	{
		name: "vault-kid-of-the-key",
		file: "server/internal/vault/series.go",
		old:  "if err == nil && id != row.ID {",
		new:  "if err == nil && id == \"\" {",
		pkg:  "server/internal/vault", test: "TestARowOpensOnlyAsItWasSealed",
	},
	{
		name: "vault-emptied-table",
		file: "server/internal/vault/series.go",
		old:  "if len(rows) < len(s.rows) {",
		new:  "if len(rows) < 0 {",
		pkg:  "server/internal/vault", test: "TestNoFreshKeyInPlaceOfOneThatDoesNotOpen",
	},
	{
		name: "vault-stale-keys",
		file: "server/internal/vault/series.go",
		old:  "case now.Sub(*read) > Stale:",
		new:  "case now.Sub(*read) > 100*Stale:",
		pkg:  "server/internal/vault", test: "TestWithoutTheTable",
	},
	{
		name: "vault-longer-lives",
		file: "server/internal/vault/vault.go",
		old:  "next.Lifetime = max(row.Lifetime, plan.Lifetime)",
		new:  "next.Lifetime = plan.Lifetime",
		pkg:  "server/internal/vault", test: "TestLongerLivesAreRemembered",
	},
	{
		name: "vault-published-ahead",
		file: "server/internal/vault/plan.go",
		old:  "SignsFrom: now.Add(ahead)",
		new:  "SignsFrom: now",
		pkg:  "server/internal/vault", test: "TestEveryTokenInForceVerifies",
	},
	{
		name: "vault-verifies-after-its-turn",
		file: "server/internal/vault/plan.go",
		old:  "end := succeeded.Add(max(r.Lifetime, p.Lifetime) + margin)",
		new:  "end := succeeded",
		pkg:  "server/internal/vault", test: "TestEveryTokenInForceVerifies",
	},
	{
		name: "vault-retired-key-never-took-over",
		file: "server/internal/vault/plan.go",
		old:  "never := !s.Retired.IsZero() && !s.Retired.After(s.SignsFrom)",
		new:  "never := false",
		pkg:  "server/internal/vault", test: "TestRetiredBeforeItSigned",
	},
	{
		name: "vault-private-part-is-deleted",
		file: "server/internal/vault/vault.go",
		old:  "if s.Phase == Retired && s.Row.Retired.IsZero() {",
		new:  "if s.Phase == Retired && s.Number == 0 {",
		pkg:  "server/internal/vault", test: "TestScheduleOfAYear",
	},
	{
		name: "vault-kek-file-mode",
		file: "server/internal/vault/kms.go",
		old:  "os.O_EXCL, 0o600)",
		new:  "os.O_EXCL, 0o644)",
		pkg:  "server/internal/vault", test: "TestKEKFiles",
	},
	{
		name: "vault-kek-file-is-not-replaced",
		file: "server/internal/vault/kms.go",
		old:  "os.O_CREATE|os.O_EXCL,",
		new:  "os.O_CREATE|os.O_TRUNC,",
		pkg:  "server/internal/vault", test: "TestKEKFiles",
	},
}

// embeddedMutants are the protections of the development issuer, which gives tokens away.
var embeddedMutants = []mutant{
	{
		name: "embedded-listens-on-loopback",
		file: "server/embedded/embedded.go",
		old:  "if !isLoopback(address) {",
		new:  "if address == \"\" {",
		pkg:  "server/embedded", test: "TestOtherMachinesAreNotListenedTo",
	},
	{
		name: "embedded-serves-loopback",
		file: "server/embedded/devissuer.go",
		old:  "!isLoopback(r.RemoteAddr) || ",
		new:  "",
		pkg:  "server/embedded", test: "TestDevIssuerGivesTokensToProgramsOnThisMachineOnly",
	},
	{
		name: "embedded-refuses-dns-rebinding",
		file: "server/embedded/devissuer.go",
		old:  "!isLoopback(r.Host) || ",
		new:  "",
		pkg:  "server/embedded", test: "TestDevIssuerGivesTokensToProgramsOnThisMachineOnly",
	},
	{
		name: "embedded-refuses-web-pages",
		file: "server/embedded/devissuer.go",
		old:  " || byPage && r.URL.Path != signInPath",
		new:  " || byPage && r.URL.Path == \"\"",
		pkg:  "server/embedded", test: "TestDevIssuerGivesTokensToProgramsOnThisMachineOnly",
	},
	{
		name: "embedded-code-once",
		file: "server/embedded/devsignin.go",
		old:  "\tdelete(c.known, name)\n",
		new:  "",
		pkg:  "server/embedded", test: "TestSignInWithTheDevIssuer",
	},
	{
		name: "embedded-code-verifier",
		file: "server/embedded/devsignin.go",
		old:  "[]byte(given.challenge)) != 1 {",
		new:  "[]byte(given.challenge)) < 0 {",
		pkg:  "server/embedded", test: "TestTheDevIssuerSignsInForTheApplicationOnly",
	},
	{
		name: "embedded-target-on-loopback",
		file: "server/embedded/cmd/deputy-target/main.go",
		old:  "ip == nil || !ip.IsLoopback() {",
		new:  "ip == nil {",
		pkg:  "server/embedded/cmd/deputy-target", test: "TestServesLoopbackOnly",
	},
}

// simulatorMutants break a rule of the simulator each. What the simulator checks of itself must notice.
var simulatorMutants = []mutant{
	{
		name: "loadtest-coordinated-omission",
		file: "loadtest/drive.go",
		old:  "\t\t\t\toutcome, err := do(ctx, i)\n\t\t\t\tr.record(time.Since(intended), outcome, err)",
		new:  "\t\t\t\tsent := time.Now()\n\t\t\t\toutcome, err := do(ctx, i)\n\t\t\t\tr.record(time.Since(sent), outcome, err)",
		pkg:  "loadtest", test: "TestAStallIsChargedToAllWhoWouldHaveWaited",
	},
	{
		name: "simulator-one-queue",
		file: "loadtest/sim/station.go",
		old:  "\ts.free[first] = max(now, s.free[first]) + job\n",
		new:  "\ts.free[first] = now + job\n",
		pkg:  "loadtest/sim", test: "TestStationIsMM1",
	},
	{
		name: "simulator-queues-of-many-servers",
		file: "loadtest/sim/station.go",
		old:  "\ts.free[first] = max(now, s.free[first]) + job\n",
		new:  "\ts.free[first] = now + job\n",
		pkg:  "loadtest/sim", test: "TestStationIsMDc",
	},
	{
		name: "simulator-loses-a-request",
		file: "loadtest/sim/ledger.go",
		old:  "\td.queue = rest\n",
		new:  "\td.queue = rest\n\tif len(d.batch) > 1 {\n\t\td.batch = d.batch[1:]\n\t}\n",
		pkg:  "loadtest/sim", test: "TestWhatMustHold",
	},
	{
		name: "simulator-ends-a-request-twice",
		file: "loadtest/sim/request.go",
		old:  "\tr.w.seen.ended(r, o)\n",
		new:  "\tr.w.seen.ended(r, o)\n\tif r.w.seen.begun%1000 == 0 {\n\t\tr.w.seen.ended(r, o)\n\t}\n",
		pkg:  "loadtest/sim", test: "TestWhatMustHold",
	},
	{
		name: "simulator-echo-without-the-ledger",
		file: "loadtest/sim/feed.go",
		old:  "\t\tif !cut && !d.instance.cut {\n\t\t\td.deliver(last)\n\t\t\td.echo(asked, began, last)\n\t\t}\n",
		new:  "\t\tif cut || d.instance.cut {\n\t\t\tbegan = 0\n\t\t} else {\n\t\t\td.deliver(last)\n\t\t}\n\t\td.echo(asked, began, last)\n",
		pkg:  "loadtest/sim", test: "TestWhatMustHold",
	},
	{
		name: "simulator-echo-as-fresh-as-its-arrival",
		file: "loadtest/sim/feed.go",
		old:  "v.asOf = max(v.asOf, m.sent)",
		new:  "v.asOf = w.now",
		pkg:  "loadtest/sim", test: "TestWhatMustHold",
	},
}

// proofMutants remove each rule for DPoP proofs (RFC 9449 section 4.3), one at a time.
var proofMutants = []mutant{
	{
		name: "dpop-typ",
		file: "client/dpop/verify.go",
		old:  "return c.Header.Type == delegation.HeaderTypeProof\n",
		new:  "return true\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-alg",
		file: "client/dpop/verify.go",
		old:  "return slices.Contains(Algorithms(), c.Header.Algorithm)\n",
		new:  "return c.Header.Algorithm != \"\" && len(Algorithms()) > 0\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-signature",
		file: "client/dpop/verify.go",
		old:  "return c.key.verifies(c.Header.Algorithm, c.SigningInput, c.Signature)\n",
		new:  "return true\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-htm",
		file: "client/dpop/verify.go",
		old:  "return c.htm == e.Method\n",
		new:  "return true\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-htu",
		file: "client/dpop/verify.go",
		old:  "return sameAddress(c.htu, e.URI)\n",
		new:  "return true\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-age",
		file: "client/dpop/verify.go",
		old:  "return c.issuedAt.Add(MaxAge + e.Skew).After(e.Now)\n",
		new:  "return true\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-future",
		file: "client/dpop/verify.go",
		old:  "return !c.issuedAt.After(e.Now.Add(e.Skew))\n",
		new:  "return true\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-ath",
		file: "client/dpop/verify.go",
		old:  "return e.AccessToken == \"\" || c.ath == hashOf(e.AccessToken)\n",
		new:  "return true\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-nonce",
		file: "client/dpop/verify.go",
		old:  "return len(e.Nonces) == 0 || slices.Contains(e.Nonces, c.nonce)\n",
		new:  "return len(e.Nonces) == 0 || !slices.Contains(e.Nonces, \"\\x00\")\n",
		pkg:  "client/dpop", test: "TestRules",
	},
	{
		name: "dpop-private-key-in-the-proof",
		file: "client/dpop/key.go",
		old:  "if _, there := jwk[name]; there {",
		new:  "if _, there := jwk[name]; there && name == \"\" {",
		pkg:  "client/dpop", test: "TestKeys",
	},
	{
		name: "dpop-weak-rsa-key",
		file: "client/dpop/key.go",
		old:  "bits < minRSABits || bits > maxRSABits",
		new:  "bits < 512 || bits > maxRSABits",
		pkg:  "client/dpop", test: "TestKeys",
	},
	{
		name: "dpop-leading-zeros",
		file: "client/dpop/key.go",
		old:  " || raw[0] == 0",
		new:  "",
		pkg:  "client/dpop", test: "TestKeys",
	},
	{
		name: "dpop-dot-segments",
		file: "client/dpop/address.go",
		old:  "if segment == \".\" || segment == \"..\" {",
		new:  "if segment == \".\\x00\" {",
		pkg:  "client/dpop", test: "TestAddresses",
	},
}
