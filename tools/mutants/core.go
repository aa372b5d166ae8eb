package main

var coreMutants = []mutant{
	{
		name: "revocation-horizon",
		file: "client/delegation/revocation.go",
		old:  "	s.forgotten = max(s.forgotten, through.Unix())\n",
		new:  "",
		pkg:  "client/delegation", test: "TestForgottenCoversWhatIsMissing",
	},
	{
		name: "revocation-horizon-absent-expiry",
		file: "client/delegation/revocation.go",
		old:  "return expires.IsZero() || expires.Unix() <= s.forgotten",
		new:  "return !expires.IsZero() && expires.Unix() <= s.forgotten",
		pkg:  "client/delegation", test: "TestForgottenCoversWhatIsMissing",
	},
	{
		name: "verifier-never-stale",
		file: "client/feed.go",
		old:  "return k, k != nil && f.clock.now().since(k.asOf) <= f.bound",
		new:  "return k, k != nil",
		pkg:  "client", test: "TestFeedFaults",
	},
}
