// A terminal: start a shell, resize, type, read. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create()
try {
  let output = ''
  const decoder = new TextDecoder()
  const terminal = await sandbox.pty.create({
    cols: 80,
    rows: 24,
    onData: (data) => { output += decoder.decode(data, { stream: true }) },
  })
  await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 30 })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
  await terminal.wait()
  assert(output.includes('30 100'), output)
  console.log('the terminal says 30 100')
} finally {
  await sandbox.kill()
}
console.log('ok')
