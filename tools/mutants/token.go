package main

import (
	"slices"
	"strings"
)

var tokenMutants = slices.Concat(tokenRuleMutants, certificateMutants, signingMutants)

// tokenRuleMutants are the rules that each token must meet: form, signature, type, audience and conditions.
var tokenRuleMutants = slices.Concat(
	cases(mutant{
		name: "token-signature-is-not-checked",
		file: "server/internal/token/key.go",
		old:  "u.Signature, k.material); err != nil {",
		new:  "u.Signature, k.material); err != nil && false {",
		pkg:  "server/internal/token",
	},
		"TestForgedTokensAreRefused/derived", "TestForgedTokensAreRefused/root", "TestForgedTokensAreRefused/assertion",
		"TestForgedTokensAreRefused/workload", "TestForgedTokensAreRefused/sign-in", "TestJWTSVID/forged",
	),
	cases(mutant{
		name: "token-of-any-typ",
		file: "server/internal/token/verify.go",
		old:  "bool { return slices.Contains(rule, typ) }",
		new:  "bool { return true }",
		pkg:  "server/internal/token",
	},
		"TestControlsOfTypAndAudience/typ_of_an_assertion", "TestControlsOfTypAndAudience/typ_of_a_subject", "TestStatusListIsNoToken",
	),
	cases(mutant{
		name: "token-for-any-audience",
		file: "server/internal/token/verify.go",
		old:  "func(a string) bool { return slices.Contains(acceptable, a) }",
		new:  "func(a string) bool { return true }",
		pkg:  "server/internal/token",
	},
		"TestControlsOfTypAndAudience/aud_of_a_subject", "TestControlsOfTypAndAudience/aud_of_an_assertion", "TestControlsOfTypAndAudience/aud_of_a_workload",
	),
	[]mutant{
		{
			name: "token-with-a-line-break", file: "client/delegation/token.go",
			old: "	if strings.ContainsAny(segment, \"\\r\\n\") {",
			new: "	if strings.ContainsAny(segment, \"\\r\\n\") && false {",
			pkg: "server/internal/token", test: "TestOtherSpellingsOfATokenAreRefused",
		},
		{
			name: "token-with-spare-bits", file: "client/delegation/token.go",
			old: "base64.RawURLEncoding.Strict()",
			new: "base64.RawURLEncoding",
			pkg: "server/internal/token", test: "TestOtherSpellingsOfATokenAreRefused",
		},
		{
			name: "token-conditions-are-not-asked", file: "server/internal/token/principal.go",
			old: "		if !c.metBy(p) {",
			new: "		if !c.metBy(p) && false {",
			pkg: "server/internal/token", test: "TestConditionsOnEveryWayIn",
		},
		{
			name: "token-of-an-unknown-client-costs-less", file: "server/internal/token/caller.go",
			old: "	if forged := key.verify(p.Unverified); err == nil {\n		err = forged\n	}\n	if err == nil {",
			new: "	if err == nil {\n		err = key.verify(p.Unverified)\n	}\n	if err == nil {",
			pkg: "server/internal/token", test: "TestUnknownClientsCostTheSameWork",
		},
		{
			name: "token-of-another-algorithm-costs-less", file: "server/internal/token/actor.go",
			old: "				_ = with.verify(p.Unverified)",
			new: "				_ = with",
			pkg: "server/internal/token", test: "TestUnknownActorsCostTheSameWork",
		},
	},
)

// certificateMutants are the rules that a client certificate and an X509-SVID must meet.
var certificateMutants = slices.Concat(
	cases(mutant{
		name: "certificate-of-any-authority",
		file: "server/internal/token/certificate.go",
		old:  "	if _, err := leaf.Verify(o); err != nil {",
		new:  "	if _, err := leaf.Verify(o); err != nil && false {",
		pkg:  "server/internal/token",
	},
		"TestCertificate/§2.1_another_authority_of_the_same_name", "TestCertificate/§2.1_self-signed_under_a_registered_name",
		"TestCertificate/§2.1_the_trust_domain's_authority", "TestCertificate/§2.1_an_expired_intermediate",
		"TestCertificate/§2.1_an_intermediate_that_is_none", "TestCertificate/§2.1_an_intermediate_that_is_missing",
		"TestCertificate/X509-SVID_an_SVID_as_client's_certificate",
	),
	cases(mutant{
		name: "certificate-at-any-time",
		file: "server/internal/token/certificate.go",
		old:  "CurrentTime: t.now(),",
		new:  "CurrentTime: chain[0].NotBefore,",
		pkg:  "server/internal/token",
	},
		"TestCertificate/§2.1_expired", "TestCertificate/§2.1_not_valid_yet",
	),
	cases(mutant{
		name: "registered-certificate-at-any-time",
		file: "server/internal/token/certificate.go",
		old:  "		case !isInForce(registered, t.now()):",
		new:  "		case !isInForce(registered, registered.NotBefore):",
		pkg:  "server/internal/token",
	},
		"TestRegisteredCertificateExpires/expired", "TestRegisteredCertificateExpires/not_valid_yet",
	),
	cases(mutant{
		name: "svid-of-any-authority",
		file: "server/internal/token/spiffe.go",
		old:  "		if err != nil || id != claimed {",
		new:  "		if err == nil && id != claimed {",
		pkg:  "server/internal/token",
	},
		"TestCertificate/X509-SVID_§5_another_trust_domain's_authority", "TestCertificate/X509-SVID_§5_the_clients'_authority",
		"TestCertificate/X509-SVID_§5_nobody's_authority", "TestCertificate/X509-SVID_§4.2_an_authority_itself",
		"TestCertificate/X509-SVID_§4.3_a_key_that_signs_certificates",
	),
	cases(mutant{
		name: "svid-at-any-time",
		file: "server/internal/token/spiffe.go",
		old:  "x509svid.WithTime(t.now())",
		new:  "x509svid.WithTime(chain[0].NotBefore)",
		pkg:  "server/internal/token",
	},
		"TestCertificate/X509-SVID_§5_expired", "TestCertificate/X509-SVID_§5_not_valid_yet",
	),
	cases(mutant{
		name: "certificate-with-a-weak-key",
		file: "server/internal/token/certificate.go",
		old:  "	if !isStrong(c.PublicKey) {",
		new:  "	if !isStrong(c.PublicKey) && false {",
		pkg:  "server/internal/token",
	},
		"TestCertificate/§2.1_a_weak_key", "TestCertificate/X509-SVID_a_weak_key",
	),
	[]mutant{
		{
			name: "certificates-without-a-number", file: "server/internal/token/certificate.go",
			old: "len(chain) == 0 || len(chain) > maxCertificates {",
			new: "len(chain) == 0 {",
			pkg: "server/internal/token", test: "TestCertificate/§2.1_too_many_certificates",
		},
		{
			name: "certificates-of-any-length", file: "server/internal/token/certificate.go",
			old: "	if total > maxCertificateBytes {",
			new: "	if total > maxCertificateBytes && false {",
			pkg: "server/internal/token", test: "TestCertificate/§2.1_too_long_certificates",
		},
		{
			name: "certificate-for-servers", file: "server/internal/token/certificate.go",
			old: "	if err := clientLeaf(chain[0]); err != nil {\n		return err\n	}\n	return verifyChain(chain[0], x509.VerifyOptions{\n" +
				"		Roots: pool(held.all()), Intermediates: pool(chain[1:]),\n" +
				"		CurrentTime: t.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},",
			new: "	return verifyChain(chain[0], x509.VerifyOptions{\n" +
				"		Roots: pool(held.all()), Intermediates: pool(chain[1:]),\n" +
				"		CurrentTime: t.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},",
			pkg: "server/internal/token", test: "TestCertificate/§2.1_for_servers_only",
		},
		{
			name: "certificate-for-nothing", file: "server/internal/token/certificate.go",
			old: "	case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth):",
			new: "	case false:",
			pkg: "server/internal/token", test: "TestCertificate/§2.1_for_nothing_in_particular",
		},
		{
			name: "certificate-of-an-intermediate-for-servers", file: "server/internal/token/certificate.go",
			old: "KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},",
			new: "KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},",
			pkg: "server/internal/token", test: "TestCertificate/§2.1_an_intermediate_for_servers_only",
		},
		{
			name: "certificate-of-an-authority-itself", file: "server/internal/token/certificate.go",
			old: "	case c.IsCA:",
			new: "	case c.IsCA && false:",
			pkg: "server/internal/token", test: "TestCertificate/§2.1_an_authority_itself",
		},
		{
			name: "certificate-whose-key-encrypts", file: "server/internal/token/certificate.go",
			old: "	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {",
			new: "	if false {",
			pkg: "server/internal/token", test: "TestCertificate/§2.1_a_key_that_encrypts",
		},
		{
			name: "svid-whose-key-signs-nothing", file: "server/internal/token/spiffe.go",
			old: "	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:",
			new: "	case false:",
			pkg: "server/internal/token", test: "TestCertificate/X509-SVID_§4.3_a_key_that_signs_nothing",
		},
		{
			name: "svid-for-servers", file: "server/internal/token/spiffe.go",
			old: "	case len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth):",
			new: "	case false:",
			pkg: "server/internal/token", test: "TestCertificate/X509-SVID_§4.4_for_servers_only",
		},
	},
)

// signingMutants are what follows on a signature, a count or a status list that fails.
var signingMutants = []mutant{
	{
		name: "unsigned-grant-stays", file: "server/internal/exchange/steps.go",
		old: "			w.void(ctx, c, c.outcome.Grant.Entry)\n",
		new: "",
		pkg: "server/internal/exchange", test: "TestFailedSignature",
	},
	{
		name: "unsigned-retry-voids-the-grant", file: "server/internal/exchange/steps.go",
		old: "	if c.retried {\n		return\n	}\n	_, err := w.config.Ledger.Append(",
		new: "	_, err := w.config.Ledger.Append(",
		pkg: "server/internal/exchange", test: "TestFailedSignature",
	},
	{
		name: "revocation-waits-for-its-count", file: "server/internal/exchange/revoke.go",
		old: "time.NewTimer(e.config.CountPatience)",
		new: "time.NewTimer(time.Hour)",
		pkg: "server/internal/exchange", test: "TestRevokeWithoutCount",
	},
	{
		name: "failed-count-is-a-count", file: "server/internal/exchange/revoke.go",
		old: "survey.Count(ctx, 0); err == nil {",
		new: "survey.Count(ctx, 0); err == nil || true {",
		pkg: "server/internal/exchange", test: "TestNoErrorAfterTheCommit",
	},
	{
		name: "status-list-of-any-age", file: "server/internal/exchange/statuslist.go",
		old: "	if left < time.Second {",
		new: "	if left < time.Second && false {",
		pkg: "server/internal/exchange", test: "TestStatusListIsRefused",
	},
}

// cases returns a row for each test of the protection, so that each shows that no other rule refuses its case.
func cases(m mutant, tests ...string) []mutant {
	var rows []mutant
	for _, test := range tests {
		words := strings.FieldsFunc(strings.ToLower(test[strings.LastIndexByte(test, '/')+1:]), func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9')
		})
		row := m
		row.name, row.test = m.name+"-"+strings.Join(words, "-"), test
		rows = append(rows, row)
	}
	return rows
}
