// The official JS SDK against a running server, told by E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AuthenticationError, CommandExitError, FileType, NotFoundError, Sandbox, SandboxNotFoundError } from 'e2b'

async function withSandbox(run, options = {}) {
  const sandbox = await Sandbox.create({ timeoutMs: 60_000, ...options })
  try {
    await run(sandbox)
  } finally {
    await sandbox.kill()
  }
}

test('a sandbox is created, found and killed', async () => {
  const sandbox = await Sandbox.create({ metadata: { 'a key': 'a=value' }, envs: { COLOUR: 'red' } })
  assert.equal(await sandbox.isRunning(), true)
  assert.equal((await sandbox.commands.run('echo $COLOUR')).stdout, 'red\n')
  const info = await sandbox.getInfo()
  assert.deepEqual(info.metadata, { 'a key': 'a=value' })
  const page = Sandbox.list({ query: { metadata: { 'a key': 'a=value' } } })
  assert.deepEqual((await page.nextItems()).map((item) => item.sandboxId), [sandbox.sandboxId])
  assert.equal(await sandbox.kill(), true)
  assert.equal(await sandbox.kill(), false)
  assert.equal(await sandbox.isRunning(), false)
  await assert.rejects(sandbox.getInfo(), SandboxNotFoundError)
})

test('connect finds the same machine', () =>
  withSandbox(async (sandbox) => {
    await sandbox.files.write('mark', 'here')
    const again = await Sandbox.connect(sandbox.sandboxId)
    assert.equal(await again.files.read('mark'), 'here')
  }))

test('commands report output, exit codes and signals', () =>
  withSandbox(async (sandbox) => {
    const seen = []
    const result = await sandbox.commands.run('echo out; echo err >&2', { onStdout: (text) => { seen.push(text) } })
    assert.deepEqual([result.stdout, result.stderr, seen.join('')], ['out\n', 'err\n', 'out\n'])
    await assert.rejects(sandbox.commands.run('exit 7'), (error) => error instanceof CommandExitError && error.exitCode === 7)
    assert.equal((await sandbox.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
    const sleeper = await sandbox.commands.run('sleep 60', { background: true })
    assert.equal(await sandbox.commands.kill(sleeper.pid), true)
    await assert.rejects(sleeper.wait(), /signal: killed/)
    assert.equal(await sandbox.commands.kill(sleeper.pid), false)
    await assert.rejects(sandbox.commands.run('pwd', { cwd: '/not/there' }))
  }))

test('stdin, connect and list', () =>
  withSandbox(async (sandbox) => {
    const command = await sandbox.commands.run('cat', { background: true, stdin: true })
    const again = await sandbox.commands.connect(command.pid)
    await sandbox.commands.sendStdin(command.pid, 'hello')
    await sandbox.commands.closeStdin(command.pid)
    assert.equal((await command.wait()).stdout, 'hello')
    assert.equal((await again.wait()).stdout, 'hello')
    await assert.rejects(sandbox.commands.connect(1_000_000), NotFoundError)
  }))

test('files in every way', () =>
  withSandbox(async (sandbox) => {
    const infos = await sandbox.files.write([
      { path: '/0/multi_0.txt', data: 'zero' },
      { path: 'one.txt', data: new TextEncoder().encode('one').buffer },
    ])
    assert.deepEqual(infos.map((info) => info.path), ['/0/multi_0.txt', '/home/user/one.txt'])
    assert.equal(await sandbox.files.read('/0/multi_0.txt'), 'zero')
    await sandbox.files.write('empty', '')
    assert.equal(await sandbox.files.read('empty'), '')
    assert.equal((await sandbox.files.read('one.txt', { format: 'bytes' })).length, 3)
    assert.equal(await sandbox.files.makeDir('d'), true)
    assert.equal(await sandbox.files.makeDir('d'), false)
    await sandbox.files.rename('one.txt', 'd/one.txt')
    const entries = await sandbox.files.list('d')
    assert.deepEqual(entries.map((entry) => [entry.name, entry.type]), [['one.txt', FileType.FILE]])
    await assert.rejects(sandbox.files.read('not-there'), NotFoundError)
    await sandbox.files.remove('d')
    assert.equal(await sandbox.files.exists('d'), false)
  }))

test('the deadline can be moved', () =>
  withSandbox(async (sandbox) => {
    const before = (await sandbox.getInfo()).endAt
    await sandbox.setTimeout(600_000)
    assert((await sandbox.getInfo()).endAt > before)
  }))

test('a wrong key is refused', async () => {
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
})
