package main

const (
	servingTests = "server/internal/exchange"
	ledgerTests  = "server/internal/ledger"
)

var forkMutants = []mutant{
	{
		name: "fork-serving-exchange", file: "server/internal/exchange/steps.go",
		old: "if err := w.serving(ctx, w.tenant.Name); err != nil {", new: "if err := w.serving(ctx, w.tenant.Name); false {",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-serving-introspect", file: "server/internal/exchange/inquire.go",
		old: "err = e.serving(ctx, by.tenant.Name)", new: "err = nil",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-serving-watch", file: "server/internal/exchange/watch.go",
		old: "err = e.serving(ctx, by.tenant.Name)", new: "err = nil",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-serving-echo", file: "server/internal/exchange/watch.go",
		old: "serving(ctx, w.by.tenant.Name); err != nil {\n\t\treturn 0, time.Time{}, err", new: "serving(ctx, w.by.tenant.Name); false {\n\t\treturn 0, time.Time{}, err",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-serving-snapshot", file: "server/internal/exchange/watch.go",
		old: "serving(ctx, w.by.tenant.Name); err != nil {\n\t\treturn nil, 0, time.Time{}, err", new: "serving(ctx, w.by.tenant.Name); false {\n\t\treturn nil, 0, time.Time{}, err",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-serving-status-list", file: "server/internal/exchange/statuslist.go",
		old: "if err := e.serving(ctx, tenant.Name); err != nil {", new: "if err := e.serving(ctx, tenant.Name); false {",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-revoking", file: "server/internal/exchange/revoke.go",
		old: "if err := e.revoking(ctx, tenant.Name); err != nil {", new: "if err := e.revoking(ctx, tenant.Name); false {",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-later-incarnation", file: "server/internal/exchange/serving.go",
		old: "case !w.There || w.Number < mine.Number,", new: "case true, !w.There || w.Number < mine.Number,",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-more-entries", file: "server/internal/exchange/serving.go",
		old: "case w.There && w.Seq > tip.Seq:", new: "case false:",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-another-entry", file: "server/internal/exchange/serving.go",
		old: "case w.There && w.Seq < tip.Seq:", new: "case false:",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-more-revocations", file: "server/internal/exchange/serving.go",
		old: "case head > s.Revocation:", new: "case false:",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-never-compared", file: "server/internal/exchange/serving.go",
		old: "v, done := e.compared.of(tenant, incarnation)\n\tif !done {", new: "v, done := e.compared.of(tenant, incarnation)\n\tif false && !done {",
		pkg: servingTests, test: "TestRedisDownIsNoFork",
	},
	{
		name: "fork-hop-active", file: "server/internal/exchange/inquire.go",
		old: " || e.ahead(by.tenant, claims.Delegation.Hops) {", new: " {",
		pkg: servingTests, test: "TestHopsAheadOfTheLedgerAreNotActive",
	},
	{
		name: "fork-hop-checked", file: "server/internal/exchange/steps.go",
		old: "if w.call.ValidateOnly && w.ahead(", new: "if false && w.ahead(",
		pkg: servingTests, test: "TestHopsAheadOfTheLedgerAreNotActive",
	},
	{
		name: "fork-hop-granted", file: "server/internal/ledger/batch.go",
		old: "if b.aboveHead(d.Lineage.Hops) {", new: "if false {",
		pkg: ledgerTests, test: "TestAheadOfTheLedgerIsRefused",
	},
	{
		name: "fork-standby", file: "server/internal/ledger/incarnation_stores.go",
		old: "SELECT pg_is_in_recovery(), current_setting", new: "SELECT false, current_setting",
		pkg: ledgerTests, test: "TestStandbysAndFailovers",
	},
	{
		name: "fork-asynchronous-standby", file: "server/internal/ledger/incarnation.go",
		old: "case !row.synchronous:", new: "case false:",
		pkg: ledgerTests, test: "TestStandbysAndFailovers",
	},
	{
		name: "fork-acknowledged-entry", file: "server/internal/ledger/incarnation.go",
		old: "case m.seq == 0 || string(w.leaf) == string(m.leaf[:]),", new: "case true, m.seq == 0 || string(w.leaf) == string(m.leaf[:]),",
		pkg: ledgerTests, test: "TestLostIsDoubted",
	},
	{
		name: "fork-doubt-of-others", file: "server/internal/ledger/incarnation.go",
		old: "case row.doubt != \"\":", new: "case false:",
		pkg: ledgerTests, test: "TestLostIsDoubted",
	},
	{
		name: "fork-locked-tables", file: "server/internal/ledger/incarnation_stores.go",
		old: "_, err := db.change(ctx, pgTouch)\n\treturn err", new: "_ = pgTouch\n\treturn nil",
		pkg: ledgerTests, test: "TestLockedTablesAreNotSound",
	},
	{
		name: "fork-nothing-kept-sqlite", file: "server/internal/ledger/kept.go",
		old: "if err == nil && changed != n {", new: "if false && changed != n {",
		pkg: ledgerTests, test: "TestNothingKeptIsNotAcknowledged",
	},
	{
		name: "fork-nothing-kept-postgres", file: "server/internal/ledger/kept.go",
		old: "THEN 1 ELSE 0 END", new: "THEN 1 ELSE 1 END",
		pkg: ledgerTests, test: "TestNothingKeptIsNotAcknowledged",
	},
	{
		name: "fork-recovery-recorded", file: "server/internal/ledger/recover.go",
		old: "cuts = append(cuts, delegation.Target{Kind: delegation.CutFork,", new: "_ = append(cuts, delegation.Target{Kind: delegation.CutFork,",
		pkg: ledgerTests, test: "TestRecoveryIsRecorded",
	},
	{
		name: "fork-cut-off", file: "client/delegation/fork.go",
		old: "hop.Seq > after && (", new: "false && (",
		pkg: "client/delegation", test: "TestCutForkHitsWhatWasLost",
	},
	{
		name: "fork-cut-off-margin", file: "client/delegation/fork.go",
		old: "time.Unix(m.at+ForkMargin, 0)", new: "time.Unix(m.at, 0)",
		pkg: "client/delegation", test: "TestCutForkHitsWhatWasLost",
	},
	{
		name: "fork-resume", file: "server/internal/rpc/watch.go",
		old: "if hello.GetIncarnation() == w.feed.Incarnation() {", new: "if true {",
		pkg: "server/internal/rpc", test: "TestResumeOfAnotherIncarnation",
	},
	{
		name: "fork-former-snapshot", file: "client/feed.go",
		old: "case part.GetIncarnation() < w.feed.incarnation(),", new: "case false,",
		pkg: "client", test: "TestFeedIncarnations",
	},
	{
		name: "fork-former-lists", file: "server/internal/guard/publish.lua",
		old: "  return -4", new: "  local superseded = true",
		pkg: "server/internal/guard", test: "TestConformance",
	},
	{
		name: "fork-redis-writes", file: "server/internal/guard/redis.go",
		old: "s.client.Set(ctx, \"deputy:probe\", \"1\", probeFor).Err()", new: "s.client.Ping(ctx).Err()",
		pkg: "server/internal/guard", test: "TestReadyNeedsWrites",
	},
	{
		name: "fork-missing-entries", file: "server/internal/rpc/entries.go",
		old: "case dropped.Through+1 < next:", new: "case false:",
		pkg: "server/internal/rpc", test: "TestStreamOfWhatIsGone",
	},
	{
		name: "fork-unrecorded-tenant", file: "server/recover.go",
		old: "Tenants: r.names(), Intact", new: "Intact",
		pkg: "server/cmd/deputyd", test: "TestRecoverByCommand",
	},
	{
		name: "fork-rotated-roots", file: "server/recover.go",
		old: "decision.All[l.Tenant] = !d.Intact && (", new: "decision.All[l.Tenant] = d.CutOff && (",
		pkg: "server/cmd/deputyd", test: "TestRecoverByCommand",
	},
	{
		name: "fork-old-uses", file: "server/internal/ledger/batch.go",
		old: "return since > 0 && u.Made", new: "return false && u.Made",
		pkg: ledgerTests, test: "TestOldUsesAreRefusedAfterARecovery",
	},
	{
		name: "fork-canceled-commit", file: "server/internal/ledger/uncancelled.go",
		old: "if committing.Load() {", new: "if false {",
		pkg: ledgerTests, test: "TestStandbysAndFailovers",
	},
	{
		name: "fork-read-of-retired", file: "server/internal/ledger/revocations.go",
		old: "if r.retired.Load() || known &&", new: "if known &&",
		pkg: ledgerTests, test: "TestRecoveryIsNotDoubtedAgain",
	},
	{
		name: "fork-read-of-renewed", file: "server/internal/ledger/revocations.go",
		old: "known && n.found && n.of != mine.Number {", new: "false && known && n.found && n.of != mine.Number {",
		pkg: ledgerTests, test: "TestRecoveryIsNotDoubtedAgain",
	},
	{
		name: "fork-superseded-by-one", file: "server/internal/exchange/serving.go",
		old: "e.superseded.by.Delete(tenant)", new: "e.superseded.by.Clear()",
		pkg: servingTests, test: "TestWhoKnowsBetterDoesNotServe",
	},
	{
		name: "fork-confirmed-doubt", file: "server/internal/ledger/incarnation.go",
		old: " AND i.recovered = 0 AND i.doubt = ''", new: " AND i.recovered = 0",
		pkg: ledgerTests, test: "TestEachTransactionConfirmsTheLedger",
	},
	{
		name: "fork-confirmed-number", file: "server/internal/ledger/incarnation.go",
		old: "WHERE i.number = $3 AND i.id = $4 AND", new: "WHERE i.number >= 0 * $3 AND i.id = $4 AND",
		pkg: ledgerTests, test: "TestEachTransactionConfirmsTheLedger",
	},
	{
		name: "fork-confirmed-id", file: "server/internal/ledger/incarnation.go",
		old: "i.number = $3 AND i.id = $4 AND i.recovered", new: "i.number = $3 AND length(i.id || $4) > 0 AND i.recovered",
		pkg: ledgerTests, test: "TestEachTransactionConfirmsTheLedger",
	},
	{
		name: "fork-confirmed-entry", file: "server/internal/ledger/incarnation.go",
		old: " AND e.leaf = $5))`", new: " AND length($5) > 0))`",
		pkg: ledgerTests, test: "TestEachTransactionConfirmsTheLedger",
	},
}
