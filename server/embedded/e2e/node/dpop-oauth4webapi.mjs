// oauth4webapi as the holder of keys (RFC 9449), with and without nonces: at the token endpoint, at
// introspection, and at a tool. Says for each step whether it was accepted, or why not.
import * as oauth from 'oauth4webapi'
import { handDown, job, keyPair, report, stepIn } from './job.mjs'

const issuer = new URL(job.issuer)
const server = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2' }))
const grantType = 'urn:ietf:params:oauth:grant-type:token-exchange'

const agent = async ({ clientId, privateKey, keyId }) => {
  const registered = await keyPair(privateKey)
  return { client: { client_id: clientId }, registered, authentication: oauth.PrivateKeyJwt({ key: registered.privateKey, kid: keyId }) }
}
const planner = await agent(job.planner)
const researcher = await agent(job.researcher)

let proof // the last that was sent
let nonces = 0 // how often one was missing
const noting = { [oauth.customFetch]: (url, options) => { proof = options.headers.dpop; return fetch(url, options) } }
const again = async (once) => {
  try {
    return await once()
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error
    nonces++
    return once()
  }
}
const exchange = (who, parameters, options) => again(async () =>
  oauth.processGenericTokenEndpointResponse(server, who.client,
    await oauth.genericTokenEndpointRequest(server, who.client, who.authentication, grantType, new URLSearchParams(parameters), { ...options, ...noting })))
const introspect = async (token) => oauth.processIntrospectionResponse(server, planner.client,
  await oauth.introspectionRequest(server, planner.client, planner.authentication, token))
const call = async (token, DPoP, path = '/events') => {
  const response = await again(() => oauth.protectedResourceRequest(token, 'GET', new URL(path, job.tool), new Headers(), null, { DPoP, ...noting }))
  return response.text()
}
const plainly = async (token, path) => {
  const response = await fetch(new URL(path, job.tool), { headers: { authorization: `DPoP ${token}`, dpop: proof } })
  return response.status === 200 ? 'accepted' : /error="(\w+)"/.exec(response.headers.get('www-authenticate'))[1]
}
const challenged = ({ cause }) => Array.isArray(cause) && cause.find(({ parameters }) => parameters.error)?.parameters.error
const outcome = async (promise) => {
  try {
    await promise
    return 'accepted'
  } catch (error) {
    return error.cause?.reason ?? challenged(error) ?? String(error)
  }
}

const results = {}
for (const algorithm of job.algorithms) {
  const steps = {}
  const pair = await oauth.generateKeyPair(algorithm)
  const DPoP = oauth.DPoP(planner.client, pair)
  const other = oauth.DPoP(planner.client, await oauth.generateKeyPair(algorithm))

  const parent = await exchange(planner, stepIn(job.root), { DPoP })
  const { cnf } = await introspect(parent.access_token)
  steps['the replayed proof'] = await outcome(exchange(planner, stepIn(job.root), { headers: { dpop: proof } }))
  steps['own child'] = await outcome(exchange(planner, stepIn(parent.access_token), { DPoP }))
  steps['own child, no proof'] = await outcome(exchange(planner, stepIn(parent.access_token)))
  steps['own child, another key'] = await outcome(exchange(planner, stepIn(parent.access_token), { DPoP: other }))
  steps['no proof at all'] = await outcome(exchange(planner, stepIn(job.root)))

  const child = await exchange(planner, handDown(parent.access_token), { DPoP })
  const theirs = oauth.DPoP(researcher.client, researcher.registered)
  steps['grandchild'] = await outcome(exchange(researcher, stepIn(child.access_token), { DPoP: theirs }))
  steps["grandchild, the parent's key"] = await outcome(exchange(researcher, stepIn(child.access_token), { DPoP: other }))
  steps['child without a key'] = await outcome(exchange(planner, { ...stepIn(parent.access_token), actor_token: job.naming, actor_token_type: 'urn:ietf:params:oauth:token-type:jwt' }, { DPoP }))

  const said = await call(child.access_token, theirs)
  steps['tool, the replayed proof'] = await plainly(child.access_token, '/events')
  await call(child.access_token, theirs)
  steps['tool, a proof for another path'] = await plainly(child.access_token, '/others')
  await call(parent.access_token, DPoP)
  steps["tool, another token's proof"] = await plainly(child.access_token, '/events')
  steps['tool, as Bearer'] = await outcome(call(child.access_token))
  steps["tool, the parent's key"] = await outcome(call(child.access_token, DPoP))

  results[algorithm] = {
    tokenType: parent.token_type, thumbprint: await DPoP.calculateThumbprint(), bound: cnf.jkt,
    parent: parent.access_token, child: child.access_token, said, steps,
  }
}
report({ algorithms: server.dpop_signing_alg_values_supported, nonces, results })
