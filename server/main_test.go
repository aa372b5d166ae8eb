package server

import (
	"testing"

	"go.uber.org/goleak"

	"deputy.example/deputy/server/internal/testservers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testservers.Main(m)) }
