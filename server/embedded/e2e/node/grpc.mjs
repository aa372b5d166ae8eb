// @grpc/grpc-js as a caller: of Deputy, with its services as proto/deputy/v1 has them, and of a tool.
import { randomUUID } from 'node:crypto'
import * as grpc from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import { SignJWT } from 'jose'
import { job, keyPair } from './job.mjs'

const files = ['exchange', 'revocation', 'audit'].map((name) => `deputy/v1/${name}.proto`)
const { deputy } = grpc.loadPackageDefinition(loadSync(files, { includeDirs: [job.protos], keepCase: true, longs: Number }))

// connected makes channels that show the certificate, or none, and closes them when the work is done.
export const connected = async (work) => {
  const open = []
  const channel = (Stub) => (address, certificate, options) => {
    const credentials = grpc.credentials.createSsl(Buffer.from(job.roots), certificate && Buffer.from(certificate.key), certificate && Buffer.from(certificate.cert))
    open.push(new Stub(address, credentials, options))
    return open.at(-1)
  }
  try {
    return await work({ deputy: channel(deputy.v1.TokenExchangeService), tool: channel(grpc.Client) })
  } finally {
    open.forEach((stub) => stub.close())
  }
}

const answered = (start, headers) => new Promise((resolve) => {
  const metadata = new grpc.Metadata()
  Object.entries(headers ?? {}).forEach(([name, value]) => metadata.set(name, value))
  start(metadata, { deadline: Date.now() + 10_000 }, (error, answer) => resolve(error ? refusal(error) : { answer }))
})

// refusal is what an error carries. The google.rpc.Status is for the test to read.
const refusal = ({ code, details, metadata }) => ({
  code, says: details, nonce: metadata.get('dpop-nonce')[0], details: metadata.get('grpc-status-details-bin')[0]?.toString('base64'),
})

export const exchange = (stub, { client, ...parameters }, headers) => answered((metadata, options, done) => {
  const { subject_token, subject_token_type, audience, lifetime, ...child } = parameters
  const requested_lifetime = lifetime && { seconds: lifetime } // google.protobuf.Duration
  stub.Exchange({ subject_token, subject_token_type, client, child: { ...child, audience: [audience], requested_lifetime } }, metadata, options, done)
}, headers)

export const introspect = (stub, request, headers) => answered((metadata, options, done) => stub.Introspect(request, metadata, options, done), headers)

// check is the tool's only method. Its request is empty.
export const checkMethod = '/grpc.health.v1.Health/Check'
export const check = (stub, headers) => answered((metadata, options, done) =>
  stub.makeUnaryRequest(checkMethod, (empty) => empty, (bytes) => bytes.toString('hex'), Buffer.alloc(0), metadata, options, done), headers)

// assertion authenticates a client by its registered key (RFC 7523), once.
export const assertion = async ({ clientId, privateKey, keyId }) => {
  const { privateKey: key } = await keyPair(privateKey)
  return {
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: await new SignJWT({ jti: randomUUID() }).setProtectedHeader({ alg: 'ES256', kid: keyId })
      .setIssuer(clientId).setSubject(clientId).setAudience(job.issuer).setIssuedAt().setExpirationTime('1m').sign(key),
  }
}
