package main

// commandMutants are protections of the programs' main packages.
var commandMutants = []mutant{
	{
		name: "hangup-ends-the-server",
		file: "server/cmd/deputyd/main.go",
		old:  "	signal.Ignore(syscall.SIGHUP)\n",
		new:  "",
		pkg:  "server/cmd/deputyd", test: "TestHangup",
	},
	{
		name: "release-without-its-version",
		file: "internal/version/version.go",
		old:  "cmp.Or(release, build.Main.Version, \"unknown\")",
		new:  "cmp.Or(build.Main.Version, \"unknown\")",
		pkg:  "internal/version", test: "TestDescribe",
	},
}
