// The sandbox's own methods, and the errors of one that is gone; pausing, snapshots and forks apart.
import assert from 'node:assert/strict'
import { e2b, sandbox, scenario, sh, version } from './sdk.mjs'

const { AuthenticationError, NotFoundError, Sandbox, SandboxError, SandboxNotFoundError, TimeoutError } = e2b

async function own(run, options = {}) {
  const mine = await Sandbox.create({ timeoutMs: 60_000, ...options })
  try {
    await run(mine)
  } finally {
    await mine.kill()
  }
}

scenario('metadata and environment of the sandbox', () =>
  own(async (mine) => {
    const info = await mine.getInfo()
    assert.deepEqual([info.sandboxId, info.metadata, info.state], [mine.sandboxId, { 'a key': 'a=value&more', žluť: '🐎' }, 'running'])
    assert.equal((await mine.commands.run('echo $COLOUR')).stdout, 'red\n')
    assert.equal((await mine.commands.run('echo $COLOUR', { envs: { COLOUR: 'blue' } })).stdout, 'blue\n')
  }, { metadata: { 'a key': 'a=value&more', žluť: '🐎' }, envs: { COLOUR: 'red' } }))

scenario('a list finds it by its metadata', async () => {
  const metadata = { mark: `${version}-${process.pid}-${Date.now()}` }
  await own((one) => own(async (other) => {
    const pages = Sandbox.list({ query: { metadata, state: ['running'] }, limit: 1 })
    const found = []
    while (pages.hasNext) found.push(...(await pages.nextItems()).map(({ sandboxId }) => sandboxId))
    assert.deepEqual(found.sort(), [one.sandboxId, other.sandboxId].sort())
  }, { metadata }), { metadata })
})

scenario('the deadline can be moved', () =>
  own(async (mine) => {
    const before = (await mine.getInfo()).endAt
    await mine.setTimeout(600_000)
    assert((await Sandbox.getInfo(mine.sandboxId)).endAt - before > 500_000)
  }))

scenario('a second client finds the same machine', async (place) => {
  await sandbox.files.write(`${place}/mark`, 'here')
  const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 300_000 })
  assert.equal(await again.files.read(`${place}/mark`), 'here')
  assert(sandbox.getHost(8000).startsWith(`8000-${sandbox.sandboxId}.`))
})

scenario('what is asked of a sandbox that is gone', async () => {
  const mine = await Sandbox.create({ timeoutMs: 60_000 })
  const command = await mine.commands.run('sleep 61', { background: true })
  // The SDK looks for the sandbox when its stream breaks off, and says what it found.
  const killed = (error) => error instanceof SandboxError && /sandbox was killed or reached its end of life/.test(error.message)
  const ended = assert.rejects(command.wait(), killed)
  assert.equal(await mine.isRunning(), true)
  assert.equal(await mine.kill(), true)
  await ended
  assert.equal(await mine.kill(), false)
  assert.equal(await Sandbox.kill(mine.sandboxId), false)
  assert.equal(await mine.isRunning(), false)
  for (const call of [() => mine.getInfo(), () => mine.setTimeout(60_000), () => Sandbox.connect(mine.sandboxId)]) {
    await assert.rejects(call(), NotFoundError)
  }
  // "The sandbox was killed or reached its timeout", which the SDK calls a timeout; not found where a stream begins.
  const gone = (error) => error instanceof TimeoutError || error instanceof SandboxNotFoundError
  for (const call of [
    () => mine.commands.run('true'), () => mine.commands.list(), () => mine.files.list('/'),
    () => mine.files.watchDir('/', () => {}), () => mine.files.read('x'), () => mine.files.write('x', 'x'),
  ]) await assert.rejects(call(), gone)
})

scenario('a key or template that is not there', async () => {
  const apiKey = 'e2b_' + '0'.repeat(40)
  await assert.rejects(Sandbox.create({ apiKey }), AuthenticationError)
  await assert.rejects(Sandbox.kill(sandbox.sandboxId, { apiKey }), AuthenticationError)
  await assert.rejects(Sandbox.create('no-such-template'), (error) => error instanceof SandboxError && /404/.test(error.message))
  assert.equal(await sh('echo here'), 'here\n')
})
