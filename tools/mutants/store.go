package main

import "slices"

// storeMutants are the protections of what instances share and of the embedded relationships.
var storeMutants = slices.Concat(memoryMutants)

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
