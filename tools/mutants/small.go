package main

var smallMutants = []mutant{
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
