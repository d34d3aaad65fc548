// The SDK by names over TLS: a domain, a key and what `firkin ca env` prints, and nothing else.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

const SCRIPT = `
import { Sandbox } from 'e2b'
const sandbox = await Sandbox.create({ timeoutMs: 60_000 })
try {
  await sandbox.files.write('/home/user/note', 'by name')
  const { stdout } = await sandbox.commands.run('cat note')
  console.log(stdout, sandbox.getHost(8000) === '8000-' + sandbox.sandboxId + '.' + process.env.E2B_DOMAIN)
} finally {
  await sandbox.kill()
}`

test('a domain, a key and the authority are enough', { timeout: 120_000 }, () => {
  const dir = mkdtempSync(join(tmpdir(), 'firkin-ca-'))
  try {
    const command = ['ca', 'env', '--data-dir', process.env.FIRKIN_TEST_DATA_DIR, '--dir', dir]
    const lines = execFileSync(process.env.FIRKIN_BIN, command, { encoding: 'utf8' })
    const authority = Object.fromEntries([...lines.matchAll(/export (\w+)=(\S+)/g)].map(([, name, value]) => [name, value]))
    const { E2B_API_URL, E2B_SANDBOX_URL, ...rest } = process.env
    const env = { ...rest, ...authority, E2B_DOMAIN: process.env.FIRKIN_TEST_DOMAIN }
    const node = ['--input-type=module', '--eval', SCRIPT]
    const output = execFileSync(process.execPath, node, { cwd: import.meta.dirname, env, encoding: 'utf8' })
    assert.equal(output, 'by name true\n')
  } finally {
    rmSync(dir, { recursive: true })
  }
})
