package main

// logCommand is what auditors do with the whole log.
type logCommand struct {
	Export exportCommand `cmd:"" help:"Write all entries, for verifying elsewhere or for a SIEM."`
}
