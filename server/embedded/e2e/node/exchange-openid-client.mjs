// openid-client: discovery (RFC 8414), token exchange, introspection, with private_key_jwt.
// Reads the job from standard input, writes what it got to standard output, both as JSON.
import { readFileSync } from 'node:fs'
import { importPKCS8 } from 'jose'
import * as client from 'openid-client'

const job = JSON.parse(readFileSync(0, 'utf8'))
const key = await importPKCS8(job.privateKey, 'ES256')

const config = await client.discovery(
  new URL(job.issuer),
  job.clientId,
  undefined,
  client.PrivateKeyJwt({ key, kid: job.keyId }),
  { algorithm: 'oauth2' },
)
const answer = await client.genericGrantRequest(config, 'urn:ietf:params:oauth:grant-type:token-exchange', job.parameters)
const introspection = await client.tokenIntrospection(config, answer.access_token)

let refusal
try {
  await client.genericGrantRequest(config, 'urn:ietf:params:oauth:grant-type:token-exchange', { ...job.parameters, scope: job.tooMuch })
} catch (error) {
  refusal = { error: error.error, status: error.status, description: error.error_description }
}
process.stdout.write(JSON.stringify({ metadata: config.serverMetadata(), answer, introspection, refusal }))
