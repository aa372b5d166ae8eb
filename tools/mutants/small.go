package main

var smallMutants = []mutant{
	{
		name: "replay-keeps-the-refusal", file: "server/internal/ledger/batch.go",
		old: "	if replayed != nil {\n		return b.refuse(d, replayed)",
		new: "	if replayed != nil && d.Kind != KindRefusal {\n		return b.refuse(d, replayed)",
		pkg: "server/internal/exchange", test: "TestReplayIsTheAnswer",
	},
	{
		name: "replay-answers-the-refusal", file: "server/internal/exchange/record.go",
		old: "	if replayed := results[0].Err; isReplay(replayed) {",
		new: "	if replayed := results[0].Err; isReplay(replayed) && recorded[0].alive() {",
		pkg: "server/internal/exchange", test: "TestReplayWithoutOpenFGA",
	},
	{
		name: "undecided-call-spends-nothing", file: "server/internal/exchange/record.go",
		old: "	if len(drafts) == 0 {\n		if err :=",
		new: "	if len(drafts) == 0 {\n		return nil\n	}\n	if len(drafts) == 0 {\n		if err :=",
		pkg: "server/internal/exchange", test: "TestReplayWithoutOpenFGA",
	},
	{
		name: "refused-proof-spends-nothing", file: "server/internal/exchange/steps.go",
		old: "	return a, e.asStranger(ctx, a, cmp.Or(e.spendRefused(ctx, a), err))",
		new: "	return a, e.asStranger(ctx, a, err)",
		pkg: "server/internal/exchange", test: "TestRefusedProofSpendsTheAssertion",
	},
	{
		name: "refused-proof-is-spent-in-redis-only", file: "server/internal/exchange/steps.go",
		old: "	return e.config.Ledger.Spend(ctx, a.tenant.Name, a.uses())",
		new: "	return nil",
		pkg: "server/internal/exchange", test: "TestRefusedProofSpendsTheAssertion",
	},
	{
		name: "oversized-batch-spends-nothing", file: "server/internal/exchange/steps.go",
		old: "cmp.Or(w.spendRefused(ctx, w.arrival), err)",
		new: "cmp.Or(nil, err)",
		pkg: "server/internal/exchange", test: "TestOversizedBatchSpendsItsAssertion",
	},
	{
		name: "suspended-caller-spends-nothing", file: "server/internal/exchange/steps.go",
		old: "w.call.Peer, w.callerUses()...)",
		new: "w.call.Peer)",
		pkg: "server/internal/exchange", test: "TestSuspendedCallerSpendsItsAssertion",
	},
	{
		name: "check-ignores-what-is-spent", file: "server/internal/ledger/batch.go",
		old: "func (b *batch) check(d *Draft) Result {\n	if spent := b.spent(d.Uses); spent != nil {",
		new: "func (b *batch) check(d *Draft) Result {\n	if spent := b.spent(nil); spent != nil {",
		pkg: "server/internal/exchange", test: "TestChecksSeeWhatIsSpent",
	},
	{
		name: "checks-of-one-call-ignore-each-other", file: "server/internal/ledger/batch.go",
		old: "		if b.checked[name] {",
		new: "		if b.checked[name] && d.ID != \"\" {",
		pkg: "server/internal/exchange", test: "TestChecksSeeWhatIsSpent",
	},
	{
		name: "check-spends", file: "server/internal/ledger/batch.go",
		old: "		b.checked[name] = true",
		new: "		b.checked[name] = true\n		b.spend(d.Uses)",
		pkg: "server/internal/exchange", test: "TestChecksSeeWhatIsSpent",
	},
	{
		name: "ath-without-a-token", file: "client/dpop/verify.go",
		old: "			return e.AccessToken != \"\" || c.ath == \"\"",
		new: "			return true",
		pkg: "server/internal/exchange", test: "TestRefusedProofSpendsTheAssertion",
	},
	{
		name: "aud-of-an-assertion-in-a-list", file: "server/internal/token/caller.go",
		old: "	case !t.addressed(p, t.issuer) || !single(p):",
		new: "	case !t.addressed(p, t.issuer):",
		pkg: "server/internal/token", test: "TestClientAssertionRules",
	},
	{
		name: "key-set-with-a-member-twice", file: "server/internal/token/key.go",
		old: "	if err := json.Unmarshal(data, &set); err != nil || set.Keys == nil {",
		new: "	if err := json.Unmarshal(data, &set, jsontext.AllowDuplicateNames(true)); err != nil || set.Keys == nil {",
		pkg: "server/internal/token", test: "TestKeySetsAreReadInOneWay",
	},
	{
		name: "principal-is-repeated", file: "client/delegation/principal.go",
		old: "		return \"\", errors.New(\"must be type:id, such as agent:planner\")",
		new: "		return \"\", errors.New(\"must be type:id, and is \" + s)",
		pkg: "server/internal/exchange", test: "TestNothingOfTheCallerIsRepeated",
	},
	{
		name: "scope-is-repeated", file: "client/delegation/scope.go",
		old: "(RFC 6749 section 3.3)\", i+1)",
		new: "(RFC 6749 section 3.3) %s\", i+1, token)",
		pkg: "server/internal/exchange", test: "TestNothingOfTheCallerIsRepeated",
	},
	{
		name: "audience-with-controls-is-repeated", file: "server/internal/exchange/plan.go",
		old: "func unprintable(r rune) bool { return !unicode.IsPrint(r) }",
		new: "func unprintable(r rune) bool { return !unicode.IsPrint(r) && r < 0 }",
		pkg: "server/internal/exchange", test: "TestNothingOfTheCallerIsRepeated",
	},
	{
		name: "migrations-at-once", file: "server/internal/ledger/migrate_sqlite.go",
		old: "\"BEGIN EXCLUSIVE\"",
		new: "\"BEGIN\"",
		pkg: "server/internal/ledger", test: "TestMigrationsAtOnce",
	},
}
