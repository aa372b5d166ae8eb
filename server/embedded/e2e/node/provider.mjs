// oidc-provider as the OpenID provider that signs alice in: the whole authorization code flow with
// PKCE, over HTTP, with a login form and a consent form. Reads {"resource": …, "scope": …} from
// standard input; writes the issuer and the tokens that the flow yields to standard output as one
// line of JSON; goes on serving its keys until standard input ends.
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'
import * as client from 'openid-client'
import { exportJWK, generateKeyPair } from 'jose'
import { Provider } from 'oidc-provider'

console.info = console.error // standard output is for the answer
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const job = JSON.parse((await lines.next()).value)

const http = createServer().listen(0, '127.0.0.1')
await new Promise((resolve) => http.once('listening', resolve))
const issuer = `http://127.0.0.1:${http.address().port}`
const redirect = 'http://127.0.0.1/callback' // nobody listens there: the code is read off the address

const { privateKey } = await generateKeyPair('RS256', { extractable: true })
const provider = new Provider(issuer, {
  clients: [{ client_id: 'application', client_secret: 'for-this-test-only', redirect_uris: [redirect], application_type: 'native' }],
  jwks: { keys: [{ ...(await exportJWK(privateKey)), alg: 'RS256', use: 'sig' }] },
  cookies: { keys: ['for-this-test-only'] },
  features: {
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: () => ({ scope: job.scope, audience: job.resource, accessTokenFormat: 'jwt', accessTokenTTL: 600 }),
    },
  },
  ttl: { IdToken: 600 },
})
http.on('request', provider.callback())

// A browser as far as this flow needs one: cookies, redirects, the first form of a page.
const cookies = new Map()
async function visit(url, form) {
  const response = await fetch(url, {
    redirect: 'manual',
    method: form ? 'POST' : 'GET',
    body: form && new URLSearchParams(form),
    headers: { cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join('; ') },
  })
  for (const cookie of response.headers.getSetCookie()) {
    const [pair] = cookie.split(';')
    const cut = pair.indexOf('=')
    cookies.set(pair.slice(0, cut), pair.slice(cut + 1))
  }
  return response
}

const config = await client.discovery(new URL(issuer), 'application', 'for-this-test-only', undefined, { execute: [client.allowInsecureRequests] })
const verifier = client.randomPKCECodeVerifier()
const state = client.randomState()
let next = client.buildAuthorizationUrl(config, {
  redirect_uri: redirect,
  scope: `openid ${job.scope}`,
  resource: job.resource,
  state,
  code_challenge: await client.calculatePKCECodeChallenge(verifier),
  code_challenge_method: 'S256',
}).href
while (!next.startsWith(redirect)) {
  let response = await visit(next)
  if (response.status === 200) {
    const page = await response.text()
    const [, prompt] = page.match(/name="prompt" value="(\w+)"/)
    const [, action] = page.match(/action="([^"]+)"/)
    response = await visit(new URL(action, next), prompt === 'login' ? { prompt, login: 'alice', password: 'any' } : { prompt })
  }
  if (!response.headers.has('location')) throw new Error(`${response.status} ${await response.text()}`)
  next = new URL(response.headers.get('location'), next).href
}
const tokens = await client.authorizationCodeGrant(config, new URL(next), { pkceCodeVerifier: verifier, expectedState: state }, { resource: job.resource })

process.stdout.write(JSON.stringify({ issuer, idToken: tokens.id_token, accessToken: tokens.access_token }) + '\n')
await lines.next()
http.close()
http.closeAllConnections()
