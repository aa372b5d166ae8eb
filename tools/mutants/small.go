package main

var smallMutants = []mutant{
	{
		name: "migrations-at-once", file: "server/internal/ledger/migrate_sqlite.go",
		old: "\"BEGIN EXCLUSIVE\"",
		new: "\"BEGIN\"",
		pkg: "server/internal/ledger", test: "TestMigrationsAtOnce",
	},
}
