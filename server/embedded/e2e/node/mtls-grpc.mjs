// A certificate authenticates over gRPC, and what is exchanged is bound to it (RFC 8705): one that is
// registered, and a SPIFFE X.509-SVID. There is no assertion.
import { check, connected, exchange, introspect } from './grpc.mjs'
import { handDown, job, report, stepIn } from './job.mjs'

report(await connected(async ({ deputy, tool }) => {
  const results = {}
  for (const [name, certificate] of Object.entries(job.certificates)) {
    const own = deputy(job.deputy, certificate)
    const other = deputy(job.deputy, job.other)
    const parent = await exchange(own, { ...stepIn(job.root), lifetime: 120 })
    const token = parent.answer?.access_token ?? ''
    const bearer = { authorization: `Bearer ${token}` }
    results[name] = {
      parent,
      introspected: await introspect(own, { token }),
      steps: {
        'own child': await exchange(own, stepIn(token)),
        'a child for the researcher': await exchange(own, handDown(token)),
        'another certificate': await exchange(other, stepIn(job.root)),
        'no certificate': await exchange(deputy(job.deputy), stepIn(job.root)),
        'tool': await check(tool(job.tool, certificate), bearer),
        'tool, another certificate': await check(tool(job.tool, job.other), bearer),
        'tool, no certificate': await check(tool(job.tool), bearer),
        'tool, no token': await check(tool(job.tool, certificate)),
      },
    }
  }
  return results
}))
