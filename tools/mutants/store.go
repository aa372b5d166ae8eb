package main

import "slices"

// storeMutants are the protections of what instances share and of the embedded relationships.
var storeMutants = slices.Concat(memoryMutants, relationshipMutants)

// memoryMutants are the protections of guard's store in memory.
var memoryMutants = []mutant{
	{
		name: "memory-forgets-uses",
		file: "server/internal/guard/memory.go",
		old:  "		s.uses.put(u.digest, true, now, u.life)\n",
		new:  "",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-replay-is-admitted",
		file: "server/internal/guard/memory.go",
		old:  "	if result.replayed > 0 {\n		return result, nil\n	}\n",
		new:  "	result.replayed = 0\n",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-replay-costs",
		file: "server/internal/guard/memory.go",
		old:  "	if result.replayed > 0 {\n		return result, nil\n	}\n",
		new:  "",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-limits-nothing",
		file: "server/internal/guard/memory.go",
		old:  "	s.rates.put(a.caller, next, now, next-now)\n",
		new:  "",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-keeps-a-lowered-limit-out",
		file: "server/internal/guard/memory.go",
		old:  "min(max(s.rates.get(a.caller, now), now), now+full)",
		new:  "max(s.rates.get(a.caller, now), now)",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-shares-tenants",
		file: "server/internal/guard/memory.go",
		old:  "	s := m.tenants[tenant]\n",
		new:  "	tenant = \"\"\n	s := m.tenants[tenant]\n",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-nonce-changes",
		file: "server/internal/guard/memory.go",
		old:  "	if s.given.get(period, now) == \"\" {\n",
		new:  "	if true {\n",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-publishes-over-a-gap",
		file: "server/internal/guard/memory.go",
		old:  "	case s.head != r.Prev:\n		return ErrGap\n",
		new:  "",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-publishes-for-a-former-incarnation",
		file: "server/internal/guard/memory.go",
		old:  "	case s.reported.Number > incarnation:\n		return ErrSuperseded\n	case s.head >= r.Seq:\n",
		new:  "	case s.head >= r.Seq:\n",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-lists-go-back",
		file: "server/internal/guard/memory.go",
		old:  "	case s.head > last:\n		return ErrAhead\n",
		new:  "",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-witness-goes-back",
		file: "server/internal/guard/memory.go",
		old:  "		if !known.There || newer {\n",
		new:  "		if !known.There || newer || true {\n",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-wakes-no-instance",
		file: "server/internal/guard/memory.go",
		old:  "	s.lists.apply(r)\n	s.head = r.Seq\n	m.tell(tenant)\n",
		new:  "	s.lists.apply(r)\n	s.head = r.Seq\n",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-loses-news-that-is-sent",
		file: "server/internal/guard/memory.go",
		old:  "	news := l.news\n	l.news = nil\n	return news\n",
		new:  "	return l.news\n",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-receipt-of-a-namesake",
		file: "server/internal/guard/receipts.go",
		old:  "return string(r.Verifier) + \" \" + r.ID",
		new:  "return \" \" + r.ID",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "memory-never-sweeps",
		file: "server/internal/guard/memory.go",
		old:  "	e.swept = second\n",
		new:  "	return\n",
		pkg:  "server/internal/guard", test: "TestMemoryForgets",
	},
	{
		name: "memory-sweeps-too-early",
		file: "server/internal/guard/memory.go",
		old:  "		if due >= second {\n			continue\n		}\n",
		new:  "",
		pkg:  "server/internal/guard", test: "TestMemoryForgets",
	},
	{
		name: "resumed-agent-is-free",
		file: "server/internal/guard/lists.go",
		old:  "		m.put(agentOf(r.Target), mark{suspended.seq, milliseconds(r.Until)})\n",
		new:  "		_ = suspended\n",
		pkg:  "server/internal/guard", test: "TestConformanceOfMemory",
	},
	{
		name: "redis-in-two-places",
		file: "server/check.go",
		old:  "	case r.InProcess && *r != (Redis{InProcess: true, Timeout: r.Timeout}):\n",
		new:  "	case false:\n",
		pkg:  "server", test: "TestRedisInProcessHasNoAddress",
	},
}

// relationshipMutants are the protections of the relationships of the embedded default.
var relationshipMutants = []mutant{
	{
		name: "relationships-acknowledged-without-a-file",
		file: "server/embedded/internal/tuples/tuples.go",
		old:  "	if err := d.recordChanges(id, changes); err != nil {\n		return err\n	}\n",
		new:  "	_ = d.recordChanges(id, changes)\n",
		pkg:  "server/embedded/internal/tuples", test: "TestFailedWrite",
	},
	{
		name: "relationships-written-later",
		file: "server/embedded/internal/tuples/tuples.go",
		old:  "	if err := d.recordChanges(id, changes); err != nil {\n		return err\n	}\n",
		new:  "	time.AfterFunc(time.Second, func() { _ = d.recordChanges(id, changes) })\n",
		pkg:  "server/embedded", test: "TestKilledWhileRelationshipsAreWritten",
	},
	{
		name: "relationships-deletes-are-not-durable",
		file: "server/embedded/internal/tuples/durable.go",
		old:  "	if d.journal == nil || len(entries) == 0 { // of New\n",
		new:  "	if d.journal == nil || len(entries) == 0 || entries[0].kind == tupleDeleted {\n",
		pkg:  "server/embedded", test: "TestRememberedAcrossARestart",
	},
	{
		name: "relationships-conditions-are-lost",
		file: "server/embedded/internal/tuples/durable.go",
		old:  "		r = newRecord(e.store, at, &t)\n",
		new:  "		t.Condition = nil\n		r = newRecord(e.store, at, &t)\n",
		pkg:  "server/embedded/internal/tuples", test: "TestOpenedAgain",
	},
	{
		name: "relationships-changes-get-new-times",
		file: "server/embedded/internal/tuples/durable.go",
		old:  "	at, k := time.Unix(0, e.at).UTC(),",
		new:  "	at, k := time.Now(),",
		pkg:  "server/embedded/internal/tuples", test: "TestOpenedAgain",
	},
	{
		name: "relationships-tokens-go-back",
		file: "server/embedded/internal/tuples/durable.go",
		old:  "	s.earliest = at.Truncate(time.Millisecond).Add(time.Millisecond)\n",
		new:  "",
		pkg:  "server/embedded/internal/tuples", test: "TestTokensGoOnAfterARestart",
	},
	{
		name: "relationships-readers-do-not-wait",
		file: "server/embedded/internal/tuples/tuples.go",
		old:  "	s.mu.Lock()\n	defer s.mu.Unlock()\n	if err := s.fits(",
		new:  "	if err := s.fits(",
		pkg:  "server/embedded/internal/tuples", test: "TestReadersWaitForTheWrite",
	},
	{
		name: "relationships-go-on-after-a-failed-write",
		file: "server/embedded/internal/tuples/journal.go",
		old:  "	if j.failed != nil {\n		return j.failed\n	}\n",
		new:  "",
		pkg:  "server/embedded/internal/tuples", test: "TestFailedWrite",
	},
	{
		name: "relationships-edited-rows-pass",
		file: "server/embedded/internal/tuples/journal.go",
		old:  "		if string(digest) != string(next[:]) {\n",
		new:  "		if false {\n",
		pkg:  "server/embedded/internal/tuples", test: "TestDamagedFileIsRefused",
	},
	{
		name: "relationships-dropped-rows-pass",
		file: "server/embedded/internal/tuples/journal.go",
		old:  "	if found != \"ok\" || version != schemaVersion {\n",
		new:  "	if version != schemaVersion {\n",
		pkg:  "server/embedded/internal/tuples", test: "TestDamagedFileIsRefused",
	},
	{
		name: "relationships-of-two-processes",
		file: "server/embedded/internal/tuples/journal.go",
		old:  "\"locking_mode(EXCLUSIVE)\"",
		new:  "\"locking_mode(NORMAL)\"",
		pkg:  "server/embedded", test: "TestOneProcessServesAFolder",
	},
	{
		name: "relationships-of-the-demo-come-back",
		file: "server/embedded/embedded.go",
		old:  "_, written := had[r]; return written",
		new:  "return had[r]",
		pkg:  "server/embedded", test: "TestRestartKeepsRelationships",
	},
}
