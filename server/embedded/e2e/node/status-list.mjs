// A resource server that looks tokens up in their Token Status List, with jose for the signatures. Reads
// the job from standard input, writes the statuses to standard output, both as JSON.
import { readFileSync } from 'node:fs'
import { inflateSync } from 'node:zlib'
import { createRemoteJWKSet, jwtVerify } from 'jose'

const job = JSON.parse(readFileSync(0, 'utf8'))
const keys = createRemoteJWKSet(new URL(`${job.issuer}/oauth2/jwks`))

const status = async (token) => {
  const { payload: claims } = await jwtVerify(token, keys, { issuer: job.issuer, typ: 'at+jwt' })
  const { idx, uri } = claims.status.status_list
  const response = await fetch(uri, { headers: { accept: 'application/statuslist+jwt' } })
  if (response.status !== 200 || response.headers.get('content-type') !== 'application/statuslist+jwt') {
    throw new Error(`${uri}: ${response.status} ${response.headers.get('content-type')}`)
  }
  const text = await response.text()
  const { payload: list } = await jwtVerify(text, keys, { issuer: job.issuer, subject: uri, typ: 'statuslist+jwt' })
  const { bits, lst } = list.status_list
  const bytes = inflateSync(Buffer.from(lst, 'base64url'))
  const perByte = 8 / bits
  return { text, ttl: list.ttl, value: (bytes[Math.floor(idx / perByte)] >> ((idx % perByte) * bits)) & ((1 << bits) - 1) }
}

const read = await Promise.all(job.tokens.map(status))
const AsToken = await jwtVerify(read[0].text, keys, { typ: 'at+jwt' }).then(() => 'accepted', (error) => error.message)
process.stdout.write(JSON.stringify({ statuses: read.map(({ value }) => value), ttl: read[0].ttl, AsToken }))
