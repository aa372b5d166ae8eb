// What the scripts about bound tokens share.
import { readFileSync } from 'node:fs'
import { exportJWK, importJWK, importPKCS8 } from 'jose'

// job is what the test wants, as JSON on standard input.
export const job = JSON.parse(readFileSync(0, 'utf8'))

// report is the answer on standard output.
export const report = (result) => process.stdout.write(JSON.stringify(result))

// keyPair of a registered key in PEM.
export const keyPair = async (pem) => {
  const privateKey = await importPKCS8(pem, 'ES256', { extractable: true })
  const { d, ...jwk } = await exportJWK(privateKey)
  return { privateKey, publicKey: await importJWK(jwk, 'ES256', { extractable: true }) }
}

export const stepIn = (token) => ({
  subject_token: token, subject_token_type: 'urn:ietf:params:oauth:token-type:access_token',
  scope: 'calendar.read', audience: job.audience,
})

// handDown to the researcher, whose token is bound to the key that is registered for it.
export const handDown = (token) => ({ ...stepIn(token), requested_actor: job.researcher.clientId, actor_confirmation: job.researcher.thumbprint })
