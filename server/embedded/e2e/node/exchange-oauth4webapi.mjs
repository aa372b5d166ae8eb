// oauth4webapi: discovery (RFC 8414), token exchange, introspection, with private_key_jwt.
// Reads the job from standard input, writes what it got to standard output, both as JSON.
import { readFileSync } from 'node:fs'
import { importPKCS8 } from 'jose'
import * as oauth from 'oauth4webapi'

const job = JSON.parse(readFileSync(0, 'utf8'))
const key = await importPKCS8(job.privateKey, 'ES256')
const grantType = 'urn:ietf:params:oauth:grant-type:token-exchange'

const issuer = new URL(job.issuer)
const server = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2' }))
const client = { client_id: job.clientId }
const authentication = oauth.PrivateKeyJwt({ key, kid: job.keyId })

const exchange = async (parameters) =>
  oauth.processGenericTokenEndpointResponse(server, client,
    await oauth.genericTokenEndpointRequest(server, client, authentication, grantType, new URLSearchParams(parameters)))

const answer = await exchange(job.parameters)
const introspection = await oauth.processIntrospectionResponse(server, client,
  await oauth.introspectionRequest(server, client, authentication, answer.access_token))

let refusal
try {
  await exchange({ ...job.parameters, scope: job.tooMuch })
} catch (error) {
  refusal = { error: error.error, status: error.status, description: error.error_description }
}
process.stdout.write(JSON.stringify({ metadata: server, answer, introspection, refusal }))
