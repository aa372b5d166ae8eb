// openid-client as a client that is known by its certificate (RFC 8705), with the HTTPS of Node.js in
// place of fetch, which shows none.
import { Agent, request } from 'node:https'
import * as client from 'openid-client'
import { handDown, job, report, stepIn } from './job.mjs'

// showing is a fetch over connections that show the certificate, or none.
const showing = (certificate) => (url, { method, headers, body }) => new Promise((resolve, reject) => {
  const agent = new Agent({ keepAlive: false, ...certificate })
  const sent = request(url, { agent, method, headers: Object.fromEntries(new Headers(headers)) }, (response) => {
    const chunks = []
    response.on('data', (chunk) => chunks.push(chunk))
    response.on('end', () => resolve(new Response(Buffer.concat(chunks), { status: response.statusCode, headers: response.headers })))
  })
  sent.on('error', reject)
  sent.end(body?.toString())
})
const connect = (certificate) => client.discovery(new URL(job.issuer), job.planner.clientId, undefined, client.TlsClientAuth(),
  { algorithm: 'oauth2', [client.customFetch]: showing(certificate) })
const exchange = (config, parameters) => client.genericGrantRequest(config, 'urn:ietf:params:oauth:grant-type:token-exchange', parameters)
const call = async (config, token) => (await client.fetchProtectedResource(config, token, new URL('/events', job.tool), 'GET')).text()
const outcome = async (promise) => {
  try {
    await promise
    return 'accepted'
  } catch ({ cause, status, message }) {
    const challenge = Array.isArray(cause) && cause.find(({ parameters }) => parameters.error)
    return cause?.reason ?? challenge?.parameters?.error ?? String(status ?? message)
  }
}

const own = await connect(job.certificate)
const other = await connect(job.other)
const none = await connect()
const parent = await exchange(own, stepIn(job.root))
const { cnf } = await client.tokenIntrospection(own, parent.access_token)
report({
  boundTokens: own.serverMetadata().tls_client_certificate_bound_access_tokens,
  methods: own.serverMetadata().token_endpoint_auth_methods_supported,
  tokenType: parent.token_type,
  bound: cnf['x5t#S256'],
  said: await call(own, parent.access_token),
  steps: {
    'own child': await outcome(exchange(own, stepIn(parent.access_token))),
    'a child for the researcher': await outcome(exchange(own, handDown(parent.access_token))),
    'another certificate': await outcome(exchange(other, stepIn(job.root))),
    'no certificate': await outcome(exchange(none, stepIn(job.root))),
    'tool, another certificate': await outcome(call(other, parent.access_token)),
    'tool, no certificate': await outcome(call(none, parent.access_token)),
  },
})
