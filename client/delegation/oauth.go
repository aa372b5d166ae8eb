package delegation

// Identifiers of RFC 8693 §2.1 and §3, RFC 7523 §2.2 and RFC 9068 §2.1, byte for byte.
const (
	GrantTypeTokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"

	TokenTypeAccessToken  = "urn:ietf:params:oauth:token-type:access_token"
	TokenTypeRefreshToken = "urn:ietf:params:oauth:token-type:refresh_token"
	TokenTypeIDToken      = "urn:ietf:params:oauth:token-type:id_token"
	TokenTypeSAML1        = "urn:ietf:params:oauth:token-type:saml1"
	TokenTypeSAML2        = "urn:ietf:params:oauth:token-type:saml2"
	TokenTypeJWT          = "urn:ietf:params:oauth:token-type:jwt"

	ClientAssertionTypeJWTBearer = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

	// HeaderTypeAccessToken is the "typ" of every token that Deputy signs.
	HeaderTypeAccessToken = "at+jwt"
	// HeaderTypeStatusList is the "typ" of a status list. The same keys sign it, and it is not a
	// token (draft-ietf-oauth-status-list §5.1).
	HeaderTypeStatusList = "statuslist+jwt"
)

// ActorAudience is the audience of a credential that only names a new actor. It authenticates no
// caller: a parent that received its sub-agent's credential must not become the sub-agent. The
// audience that authenticates a caller is the tenant's issuer itself.
func ActorAudience(issuer string) string { return issuer + "/actor" }
