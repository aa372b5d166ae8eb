package main

import (
	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

type proofCommand struct {
	DPoPKey         string `name:"dpop-key" env:"DEPUTY_DPOP_KEY" placeholder:"FILE" help:"Private key that signs the proof: JWK or PEM."`
	Method          string `default:"GET" placeholder:"METHOD" help:"HTTP method of the request; POST for gRPC (${default})."`
	URL             string `name:"url" required:"" placeholder:"URL" help:"URL of the request. For gRPC https://HOST:PORT/package.Service/Method."`
	AccessTokenFile string `placeholder:"FILE" help:"Token that the request carries, - for standard input. Default: none, as at a token endpoint."`
	Nonce           string `placeholder:"NONCE" help:"DPoP-Nonce of the server's last response."`
}

func (proofCommand) Help() string {
	return `A proof is valid for one request and for one minute. Standard output holds the proof only.

Examples:
  # call a tool with a token that is bound to your key
  curl https://calendar.example/events -H "Authorization: DPoP $(cat token.jwt)" \
    -H "DPoP: $(deputy proof --dpop-key agent.pem --url https://calendar.example/events --access-token-file token.jwt)"

  # again, after an answer use_dpop_nonce
  deputy proof --dpop-key agent.pem --url https://calendar.example/events --access-token-file token.jwt --nonce eyJ7S_zG

  # exchange a bound token without this program
  curl https://deputy.example/oauth2/token -d @exchange.form \
    -H "DPoP: $(deputy proof --dpop-key agent.pem --method POST --url https://deputy.example/oauth2/token)"`
}

// Run makes a DPoP proof (RFC 9449 section 4.2).
func (cmd *proofCommand) Run(a *app) error {
	if cmd.DPoPKey == "" {
		return usage("key: is missing; name --dpop-key, or set DEPUTY_DPOP_KEY")
	}
	key, err := loadProofKey(cmd.DPoPKey)
	if err != nil {
		return err
	}
	request := dpop.Request{Method: cmd.Method, URI: cmd.URL, Nonce: cmd.Nonce}
	if cmd.AccessTokenFile != "" {
		if request.AccessToken, err = a.readToken(cmd.AccessTokenFile); err != nil {
			return err
		}
		if err := boundTo(request.AccessToken, key); err != nil {
			return err
		}
	}
	proof, err := key.Prove(request, a.now(), nil)
	if err != nil {
		return usage("--url: %v", err)
	}
	if a.json {
		return a.writeJSON(struct {
			Proof string `json:"proof"`
			JKT   string `json:"jkt"`
		}{proof, key.Thumbprint()})
	}
	a.stdout.line("%s", proof)
	return nil
}

func loadProofKey(path string) (*dpop.Key, error) {
	key, err := client.LoadKey(path)
	if err != nil {
		return nil, usage("--dpop-key: %v", err)
	}
	proofKey, err := key.ProofKey()
	if err != nil {
		return nil, usage("--dpop-key: %v", err)
	}
	return proofKey, nil
}

// boundTo refuses a key to which the token is not bound, because no server accepts its proof. A
// token that cannot be parsed is left to the server.
func boundTo(token string, key *dpop.Key) error {
	u, err := delegation.Parse(token)
	if err != nil {
		return nil
	}
	claim, there := u.Claim("cnf")
	if !there {
		return usage("the token is bound to no key: send it as Bearer, without a proof")
	}
	switch c, err := delegation.ReadConfirmation(claim); {
	case err != nil:
		return nil
	case c.X5T != "":
		return usage("the token is bound to a certificate: send it as Bearer, over a connection with that certificate")
	case c.JKT != key.Thumbprint():
		return usage("the token is bound to the key %s, and --dpop-key is %s", c.JKT, key.Thumbprint())
	}
	return nil
}

type thumbCommand struct {
	File string `arg:"" help:"A private key (JWK or PEM), or a certificate (PEM)."`
}

func (thumbCommand) Help() string {
	return `The thumbprint of a key (RFC 7638) is the value of cnf.jkt in tokens, and of --actor-confirmation. The
thumbprint of a certificate (RFC 8705) is the value of cnf.x5t#S256.

Examples:
  deputy thumbprint researcher.pem
  deputy revoke --key "$(deputy thumbprint stolen.pem)"`
}

// Run prints the thumbprint.
func (cmd *thumbCommand) Run(a *app) error {
	kind, thumbprint, err := thumbprintOf(cmd.File)
	if err != nil {
		return usage("%v", err)
	}
	if a.json {
		return a.writeJSON(map[string]string{kind: thumbprint})
	}
	a.stdout.line("%s", thumbprint)
	return nil
}
