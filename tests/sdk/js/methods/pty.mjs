// Every method of `pty`.
import assert from 'node:assert/strict'
import { e2b, sandbox, scenario, until } from './sdk.mjs'

const { CommandExitError, NotFoundError } = e2b
const bytes = (text) => new TextEncoder().encode(text)

async function terminal(options = {}) {
  const chunks = []
  const onData = (data) => { chunks.push(data) }
  const handle = await sandbox.pty.create({ cols: 80, rows: 24, onData, timeoutMs: 60_000, ...options })
  const text = () => Buffer.concat(chunks).toString().replace(/\x1b\[\?2004[hl]\r?/g, '')
  return { handle, text, until: (wanted) => until(() => text().includes(wanted), text) }
}

scenario('a terminal runs a shell', async (place) => {
  const { handle, text } = await terminal({ user: 'root', cwd: place, envs: { PS1: '$ ', FOO: 'bar' } })
  await sandbox.pty.sendInput(handle.pid, bytes('pwd; whoami; echo $FOO-$TERM-$LANG; stty size\nexit 3\n'))
  await assert.rejects(handle.wait(), (error) => error instanceof CommandExitError && error.exitCode === 3)
  for (const wanted of [`\n${place}\r\n`, '\nroot\r\n', '\nbar-xterm-256color-C.UTF-8\r\n', '\n24 80\r\n']) {
    assert(text().includes(wanted), text())
  }
})

scenario('a terminal gets another size', async () => {
  const shell = await terminal()
  await shell.until('$')
  await sandbox.pty.resize(shell.handle.pid, { cols: 42, rows: 10 })
  await sandbox.pty.sendInput(shell.handle.pid, bytes('stty size; exit\n'))
  await shell.handle.wait()
  assert(shell.text().includes('\n10 42\r\n'), shell.text())
})

scenario('a second client of a terminal', async () => {
  const first = await terminal()
  await first.until('$')
  await first.handle.disconnect()
  const chunks = []
  const again = await sandbox.pty.connect(first.handle.pid, { onData: (data) => { chunks.push(data) }, timeoutMs: 30_000 })
  await sandbox.pty.sendInput(first.handle.pid, bytes("echo žlu''ťoučký; exit\n"))
  assert.equal((await again.wait()).exitCode, 0)
  assert(Buffer.concat(chunks).toString().includes('\ržluťoučký\r\n'), Buffer.concat(chunks).toString())
  await assert.rejects(sandbox.pty.connect(1_000_000, { onData: () => {} }), NotFoundError)
})

scenario('a terminal is killed', async () => {
  const { handle } = await terminal()
  assert.equal(await sandbox.pty.kill(handle.pid), true)
  await assert.rejects(handle.wait(), CommandExitError)
  assert.equal(await sandbox.pty.kill(handle.pid), false)
  await assert.rejects(sandbox.pty.sendInput(handle.pid, bytes('x')), NotFoundError)
})
