// Every method of `commands` and of a command's handle.
import assert from 'node:assert/strict'
import { e2b, sandbox, scenario, sh, until } from './sdk.mjs'

const { AuthenticationError, CommandExitError, InvalidArgumentError, NotFoundError, TimeoutError } = e2b

scenario('output, exit code and error text', async () => {
  const result = await sandbox.commands.run('echo out; echo err >&2')
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0])
  assert(!result.error)
  await assert.rejects(sandbox.commands.run('echo before; echo why >&2; exit 7'), (error) => {
    assert(error instanceof CommandExitError)
    assert.deepEqual([error.exitCode, error.error, error.stdout, error.stderr], [7, 'exit status 7', 'before\n', 'why\n'])
    return true
  })
})

scenario('what a command is told arrives as it is', async () => {
  for (const text of ['!@#$%&*()_+-=[]{}|;:,.<>?/~^', 'two\nlines\n\nand a tab\t', 'žluťoučký kůň 🐎 漢字 العربية', `'"'"\\`]) {
    assert.equal(await sh('printf %s "$TEXT"', { envs: { TEXT: text } }), text)
    assert.equal(await sh(`printf %s '${text.replaceAll("'", "'\\''")}'`), text)
  }
})

scenario('a character cut in two comes whole', async () => {
  const seen = []
  const result = await sandbox.commands.run(`printf '\\xc3'; sleep 0.3; printf '\\xa9'`, { onStdout: (text) => { seen.push(text) } })
  assert.deepEqual([result.stdout, seen.join('')], ['é', 'é'])
})

scenario('output comes as it is written', async () => {
  const out = []
  const err = []
  const result = await sandbox.commands.run('echo one; sleep 0.4; echo two; echo bad >&2', {
    onStdout: (text) => { out.push([text, Date.now()]) },
    onStderr: (text) => { err.push(text) },
  })
  assert.deepEqual([out.map(([text]) => text), err], [['one\n', 'two\n'], ['bad\n']])
  assert(out[1][1] - out[0][1] > 200)
  assert.equal(result.stdout, 'one\ntwo\n')
})

scenario('users, directories and environment', async (place) => {
  assert.equal(await sh('whoami; pwd; echo $HOME $USER'), 'user\n/home/user\n/home/user user\n')
  assert.equal(await sh('whoami; pwd', { user: 'root' }), 'root\n/root\n')
  assert.equal(await sh('pwd', { cwd: place }), `${place}\n`)
  assert.equal(await sh('echo $FOO $BAR', { envs: { FOO: 'foo', BAR: 'a b' } }), 'foo a b\n')
  assert.equal(await sh('echo $E2B_SANDBOX $E2B_SANDBOX_ID'), `true ${sandbox.sandboxId}\n`)
  await assert.rejects(sandbox.commands.run('pwd', { cwd: '/not/there' }), InvalidArgumentError)
  await assert.rejects(sandbox.commands.run('pwd', { user: 'nobody-there' }), (error) => {
    return error instanceof AuthenticationError && /nobody-there/.test(error.message)
  })
})

scenario('a timeout kills the command', async (place) => {
  await assert.rejects(sandbox.commands.run(`echo $$ >${place}/pid; exec sleep 61`, { timeoutMs: 1000 }), TimeoutError)
  await sh(`until ! kill -0 $(cat ${place}/pid) 2>/dev/null; do sleep 0.02; done`)
  assert.equal(await sh('sleep 1.2; echo slept', { timeoutMs: 0 }), 'slept\n')
})

scenario('stdin by the module and by the handle', async () => {
  assert.equal(sandbox.commands.supportsStdinClose, true)
  const command = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(command.pid, 'one\n')
  await sandbox.commands.sendStdin(command.pid, '')
  await command.sendStdin('žwei\n')
  await command.sendStdin(new TextEncoder().encode('🐎\n'))
  await command.closeStdin()
  assert.equal((await command.wait()).stdout, 'one\nžwei\n🐎\n')
  const other = await sandbox.commands.run('wc -c', { background: true, stdin: true })
  await sandbox.commands.sendStdin(other.pid, new Uint8Array(100_000))
  await sandbox.commands.closeStdin(other.pid)
  assert.equal((await other.wait()).stdout.trim(), '100000')
  await assert.rejects(sandbox.commands.sendStdin(other.pid, 'late'), NotFoundError)
  await assert.rejects(sandbox.commands.run('read line'), CommandExitError)
}, 'supportsStdinClose')

scenario('the list tells what runs', async (place) => {
  const command = await sandbox.commands.run('sleep 61', { background: true, envs: { WHAT: 'listed' }, cwd: place })
  const process = (await sandbox.commands.list()).find(({ pid }) => pid === command.pid)
  assert.deepEqual([process.cmd, process.args, process.envs.WHAT, process.cwd], ['/bin/bash', ['-l', '-c', 'sleep 61'], 'listed', place])
  assert.equal(await command.kill(), true)
  await assert.rejects(command.wait(), (error) => error.exitCode === -1 && error.error === 'signal: killed')
  assert.equal(await command.kill(), false)
  assert.equal((await sandbox.commands.list()).some(({ pid }) => pid === command.pid), false)
})

scenario('who disconnects leaves the command running', async () => {
  const command = await sandbox.commands.run('cat; echo the end', { background: true, stdin: true })
  await command.disconnect()
  const heard = []
  const again = await sandbox.commands.connect(command.pid, { onStdout: (text) => { heard.push(text) }, timeoutMs: 30_000 })
  assert.equal(again.pid, command.pid)
  await again.sendStdin('heard\n')
  await again.closeStdin()
  assert.equal((await again.wait()).stdout, 'heard\nthe end\n')
  assert.equal(heard.join(''), 'heard\nthe end\n')
  await assert.rejects(sandbox.commands.connect(1_000_000), NotFoundError)
})

scenario('a kill is told, and once', async () => {
  const command = await sandbox.commands.run("trap '' TERM; sleep 61", { background: true })
  assert.equal(await sandbox.commands.kill(command.pid), true)
  await assert.rejects(command.wait(), (error) => error instanceof CommandExitError && error.error === 'signal: killed')
  assert.equal(await sandbox.commands.kill(command.pid), false)
})

scenario('a handle tells the result as it becomes', async (place) => {
  const command = await sandbox.commands.run(`echo out; echo err >&2; until test -e ${place}/go; do sleep 0.02; done; exit 3`, { background: true })
  await until(() => command.stdout === 'out\n' && command.stderr === 'err\n', () => command.stdout)
  assert.equal(command.exitCode, undefined)
  await sandbox.files.write(`${place}/go`, '')
  await assert.rejects(command.wait(), CommandExitError)
  assert.deepEqual([command.exitCode, command.error], [3, 'exit status 3'])
})

scenario('megabytes of output are complete', async () => {
  assert.equal(await sh(`head -c 8000000 /dev/zero | tr '\\0' x; echo`), 'x'.repeat(8_000_000) + '\n')
})

scenario('fifty commands at once', async () => {
  const results = await Promise.all(Array.from({ length: 50 }, (_, number) => sh(`echo ${number}`)))
  assert.deepEqual(results, Array.from({ length: 50 }, (_, number) => `${number}\n`))
})

scenario('a signal of the caller ends the call', async () => {
  await assert.rejects(sandbox.commands.list({ signal: AbortSignal.abort() }))
  assert(Array.isArray(await sandbox.commands.list({ requestTimeoutMs: 30_000 })))
}, 'signal')
