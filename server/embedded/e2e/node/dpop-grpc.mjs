// Proofs over gRPC, by the profile in docs/dpop.md: npm dpop makes them, grpc-js carries them.
import { calculateThumbprint, generateKeyPair, generateProof } from 'dpop'
import { assertion, check, checkMethod, connected, exchange } from './grpc.mjs'
import { handDown, job, keyPair, report, stepIn } from './job.mjs'

const exchangeMethod = '/deputy.v1.TokenExchangeService/Exchange'
let proof // the last that was made
const nonces = {} // by authority

// prove calls with a proof for the method, and once more with the nonce if that is what was missing.
const prove = async (key, authority, method, token, call) => {
  const once = async () => {
    proof = await generateProof(key, `https://${authority}${method}`, 'POST', nonces[authority], token)
    return call(proof)
  }
  const first = await once()
  if (!first.nonce || first.nonce === nonces[authority]) return first
  nonces[authority] = first.nonce
  return once()
}

report(await connected(async ({ deputy, tool }) => {
  const results = {}
  const stub = deputy(job.deputy)
  const renamed = deputy(job.deputy, undefined, { 'grpc.default_authority': 'other.example' })
  const ask = async (who, parameters, key, { authority = job.deputy, method = exchangeMethod, by = stub, sent } = {}) => {
    const client = await assertion(who)
    const send = (dpop) => exchange(by, { ...parameters, client }, dpop && { dpop })
    if (!key) return send(sent)
    return prove(key, authority, method, undefined, async (dpop) => exchange(by, { ...parameters, client: await assertion(who) }, { dpop }))
  }
  const called = tool(job.tool)
  const call = (key, token, { scheme = 'DPoP', ath = true, method = checkMethod } = {}) =>
    prove(key, job.tool, method, ath ? token : undefined, (dpop) => check(called, { authorization: `${scheme} ${token}`, dpop }))

  for (const algorithm of job.algorithms) {
    const key = await generateKeyPair(algorithm)
    const other = await generateKeyPair(algorithm)
    const theirs = await keyPair(job.researcher.privateKey)
    const parent = await ask(job.planner, { ...stepIn(job.root), lifetime: 120 }, key)
    const used = proof
    const held = stepIn(parent.answer?.access_token)
    const child = await ask(job.planner, handDown(held.subject_token), key)
    const token = child.answer?.access_token
    const steps = {
      'the replayed proof': await ask(job.planner, stepIn(job.root), undefined, { sent: used }),
      'own child': await ask(job.planner, held, key),
      'own child, no proof': await ask(job.planner, held),
      'own child, another key': await ask(job.planner, held, other),
      'a proof for another method': await ask(job.planner, held, key, { method: '/deputy.v1.TokenExchangeService/Introspect' }),
      'a proof for another server': await ask(job.planner, held, key, { authority: 'other.example' }),
      "another server's name": await ask(job.planner, held, key, { authority: 'other.example', by: renamed }),
      'grandchild': await ask(job.researcher, stepIn(token), theirs),
      "grandchild, the parent's key": await ask(job.researcher, stepIn(token), key),
      'tool': await call(theirs, token),
      'tool, the replayed proof': await check(called, { authorization: `DPoP ${token}`, dpop: proof }),
      'tool, no proof': await check(called, { authorization: `DPoP ${token}` }),
      'tool, as Bearer': await call(theirs, token, { scheme: 'Bearer', ath: false }),
      "tool, the parent's key": await call(key, token),
      'tool, no ath': await call(theirs, token, { ath: false }),
      'tool, a proof for another method': await call(theirs, token, { method: '/grpc.health.v1.Health/List' }),
    }
    results[algorithm] = { thumbprint: await calculateThumbprint(key.publicKey), parent, child, steps }
  }
  return { nonces: Object.keys(nonces), results }
}))
