package main

var ledgerMutants = []mutant{
	{
		name: "ledger-revoked-parent-granted", file: "server/internal/ledger/batch.go",
		old: "	if hit(set, d.lineage()) {\n",
		new: "	if hit(set, d.lineage()) && false {\n",
		pkg: "server/internal/ledger", test: "TestRevocationInterleavings",
	},
	{
		name: "ledger-used-again", file: "server/internal/ledger/batch.go",
		old: "if b.facts.used[u.digest()] || b.forgotten(u.Until) {",
		new: "if b.forgotten(u.Until) {",
		pkg: "server/internal/ledger", test: "TestSingleUseRace",
	},
	{
		name: "ledger-key-taken-is-granted", file: "server/internal/ledger/batch.go",
		old: "if stored, taken := b.facts.keys[keyDigest(d.Caller, d.Idempotency.Key)]; taken {",
		new: "if stored, taken := b.facts.keys[keyDigest(d.Caller, d.Idempotency.Key)]; taken && false {",
		pkg: "server/internal/ledger", test: "TestIdempotencyRace",
	},
	{
		name: "ledger-key-is-not-recorded", file: "server/internal/ledger/batch.go",
		old: "	if d.Idempotency == nil {\n",
		new: "	if d.Idempotency == nil || true {\n",
		pkg: "server/internal/ledger", test: "TestIdempotencyRace",
	},
	{
		name: "ledger-events-before-the-commit", file: "server/internal/ledger/batch.go",
		old: "	err = tx.commit(attempt, &b.w)\n",
		new: "	b.s.live.advance(b.revoked(), true)\n	err = tx.commit(attempt, &b.w)\n",
		pkg: "server/internal/ledger", test: "TestEventsFollowCommits",
	},
	{
		name: "ledger-events-with-a-gap", file: "server/internal/ledger/feed.go",
		old: "if v.Prev != f.last {",
		new: "if v.Prev != f.last && false {",
		pkg: "server/internal/ledger", test: "TestEventsHaveNoGap",
	},
	{
		name: "ledger-entry-outside-the-tree", file: "server/internal/ledger/batch.go",
		old: "	b.plant(e.Leaf)\n",
		new: "",
		pkg: "server/internal/ledger", test: "TestAHeadWithoutItsTreeIsRefused",
	},
	{
		name: "ledger-damaged-head-grows", file: "server/internal/ledger/batch.go",
		old: "if damaged := b.facts.head.damaged; damaged != nil {",
		new: "if damaged := b.facts.head.damaged; damaged != nil && false {",
		pkg: "server/internal/ledger", test: "TestAHeadWithoutItsTreeIsRefused",
	},
	{
		name: "ledger-lost-postings-match-nothing", file: "server/internal/ledger/search.go",
		old: "			a.lost[i] = true\n",
		new: "			a.members[i] = members{}\n",
		pkg: "server/internal/ledger", test: "TestLostPostingsAreNoticed",
	},
	{
		name: "ledger-index-decides", file: "server/internal/ledger/search.go",
		old: "len(page) < limit && w.matches(e) && ",
		new: "len(page) < limit && ",
		pkg: "server/internal/ledger", test: "TestIndexOnlyProposes",
	},
	{
		name: "ledger-index-of-changed-entries", file: "server/internal/ledger/keep.go",
		old: "if err != nil || n == 0 {",
		new: "if err != nil || n < 0 {",
		pkg: "server/internal/ledger", test: "TestErasedWhileIndexing",
	},
	{
		name: "ledger-status-ignores-new-revocations", file: "server/internal/ledger/statuses.go",
		old: "if seq > p.to.revoked || !p.mentions.in(raw) {",
		new: "if true {",
		pkg: "server/internal/ledger", test: "TestStatusesAreTheTruth",
	},
	{
		name: "ledger-status-ignores-voids", file: "server/internal/ledger/statuses.go",
		old: "case err == nil && !p.anew:",
		new: "case err == nil && !p.anew && false:",
		pkg: "server/internal/ledger", test: "TestStatusesAreTheTruth",
	},
	{
		name: "ledger-status-continues-across-a-gap", file: "server/internal/ledger/statuses.go",
		old: "p.anew = p.from.Statuses == nil || !complete || p.to.head",
		new: "p.anew = p.from.Statuses == nil || !complete && false || p.to.head",
		pkg: "server/internal/ledger", test: "TestStatusesAcrossAGap",
	},
	{
		name: "ledger-erases-what-is-alive", file: "server/internal/ledger/erase.go",
		old: "	lost := named &^ needed\n",
		new: "	lost := named\n",
		pkg: "server/internal/ledger", test: "TestErasesAPrincipal",
	},
	{
		name: "ledger-forgets-a-live-block", file: "server/internal/ledger/retention.go",
		old: "return there == blockSize && alive == 0, err",
		new: "return there == blockSize && alive >= 0, err",
		pkg: "server/internal/ledger", test: "TestDropsWhatIsOld",
	},
	{
		name: "ledger-drops-endless-revocations", file: "server/internal/ledger/drop.go",
		old: "AND (until = 0 OR until > $4 OR seq",
		new: "AND (until > $4 OR seq",
		pkg: "server/internal/ledger", test: "TestDropsWhatIsOld",
	},
	{
		name: "ledger-drops-the-newest-revocation", file: "server/internal/ledger/drop.go",
		old: "until > $4 OR seq = (SELECT revocation FROM heads WHERE tenant = $1)))",
		new: "until > $4))",
		pkg: "server/internal/ledger", test: "TestDropsWhatIsOld",
	},
	{
		name: "ledger-sweeps-endless-revocations", file: "server/internal/ledger/drop.go",
		old: "AND until <> 0 AND until <= $3",
		new: "AND until <= $3",
		pkg: "server/internal/ledger", test: "TestDropsWhatIsOld",
	},
	{
		name: "ledger-drops-the-leaves", file: "server/internal/ledger/drop.go",
		old: "i < len(leaves); i += tierWidth",
		new: "i < len(leaves) && false; i += tierWidth",
		pkg: "server/internal/ledger", test: "TestDropsWhatIsOld",
	},
}
